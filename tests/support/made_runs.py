"""Run folders as a training would leave them, written without one: what a report has to cope with is chosen by the test."""

import json
import math

from realrl.config import dump_config, parse_config
from realrl.rundir.rollouts import write_rollouts

HOSTILE = (
    "<img src=x onerror=\"window.hacked = 'img'\"> </script><script>window.hacked = 'script'</script> <!-- <script> "
    "\x1b[31mred\x1b]0;title\x07 \u202eesrever \u2028 & ${title} \ud800"
)


def rollout(step, group=0, **changes):
    right = changes.get("reward", float(group % 2)) > 0
    row = {
        "step": step,
        "group": group,
        "problem_id": f"problem-{group}",
        "prompt": f"What is {group} + {step}?",
        "response": f"It is \\boxed{{{group + step}}}",
        "extracted": str(group + step),
        "answer": str(group + step if right else -1),
        "verdict": "correct" if right else "wrong",
        "reason": "equal integers" if right else "another number",
        "reward": float(right),
        "score": 0.01 * step * (1 if right else -1),
        "weight": -0.05 if right else 0.05,
        "tokens": 12,
        "truncated": False,
    }
    return row | changes


def make_run(folder, *, seed=0, steps=6, rollouts=4, objective=None, metrics=None, rows=None):
    """A finished run; `metrics(step)` adds to a step's record, `rows(step)` replaces the step's rollouts."""
    folder.mkdir(parents=True)
    recipe = {
        "run": {"dir": str(folder), "seed": seed},
        "model": {"path": "tiny-adder"},
        "data": {"train": "column_addition", "eval": ["column_addition"]},
        # Of a second grader; no time of the clock decides what it finds.
        "reward": {"timeout_s": 3600.0},
        "objective": objective or {"type": "real"},
        "train": {"steps": steps},
    }
    (folder / "config.toml").write_text(dump_config(parse_config(recipe)))
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            record = {
                "reward/mean": 0.3 + 0.05 * step + 0.02 * seed,
                "policy/entropy": math.exp(-step / 9),
                "groups/mixed": 0.5,
            }
            record |= metrics(step) if metrics else {}
            file.write(json.dumps({"step": step, "time": 1000.0 + 10 * step, **record}) + "\n")
            if step in (1, steps):
                scored = {"accuracy": 0.5 + 0.02 * step, "standard_error": 0.04}
                scored = {f"eval/column_addition/sampled/{name}": value for name, value in scored.items()}
                file.write(json.dumps({"step": step, "time": 1005.0 + 10 * step, **scored}) + "\n")
    if rollouts:
        (folder / "rollouts").mkdir()
        for step in range(1, steps + 1):
            made = rows(step) if rows else [rollout(step, group) for group in range(rollouts)]
            write_rollouts(folder / "rollouts" / f"step_{step:06}.parquet", made)
    return folder
