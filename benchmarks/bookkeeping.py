"""What a step costs beside the model, at the paper's size: 128 prompts × 8 rollouts of up to 8,192 tokens; prints JSON.

The loop, the collector and the recorder of `realrl train` run as they are; the sampler, the verifier and the model's
log-probabilities are stubs, the latter's time left out. "update: tensors" is arithmetic on the model's device, here the CPU;
on a GPU it is next to nothing, so `host_cpu_seconds` leave it out, and `two_percent_of_s` is the step from which on these are
below 2 %. Seconds are of the CPU, so that a busy machine changes them little; medians over `--steps` steps after the first.
Memory is what the process holds beyond what it held before the first rollout, at its peak; the rollouts themselves are counted.
Each case, without and with log.tokens, is a process of its own; then comes `realrl report` on what that run left.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

PROMPTS, GROUP, LONGEST = 128, 8, 8192


class Laps:
    """CPU seconds by name, of calls wrapped in `around`; time within an inner one is the inner one's alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def around(self, name, function):
        def wrapper(*arguments, **keywords):
            started = time.process_time()
            self._inner.append(0.0)
            try:
                return function(*arguments, **keywords)
            finally:
                took = time.process_time() - started
                self.seconds[name] += took - self._inner.pop()
                self._inner[-1] += took

        return wrapper


class StubSampler:
    """Gives the same rollouts at every step; their lengths are log-normal, one in some ten cut at the limit."""

    def __init__(self, vocabulary: int) -> None:
        import numpy as np

        from realrl.types import Rollout

        rng, words = np.random.default_rng(0), random.Random(0)
        lexicon = ["".join(words.choices("etaoinshrdlu", k=words.randint(1, 9))) for _ in range(5000)]
        lengths = np.minimum(rng.lognormal(np.log(3000), 0.8, PROMPTS * GROUP), LONGEST).astype(int)
        lengths[0] = LONGEST
        self.tokens = int(lengths.sum())
        self.rollouts = [
            Rollout(
                index // GROUP,
                tuple(rng.integers(3, vocabulary, length).tolist()),
                tuple((-rng.exponential(0.5, length)).astype(np.float32).tolist()),
                " ".join(words.choices(lexicon, k=int(length * 0.75))) + rf" \boxed{{{index % 2}}}",
                bool(length == LONGEST),
            )
            for index, length in enumerate(lengths)
        ]

    def sample(self, prompts, *, group_size, params, seeds, on_finished=None):
        for index, rollout in enumerate(self.rollouts):
            on_finished(index, rollout)
        return list(self.rollouts)

    def update_weights(self, model) -> None:
        """It has none."""


def make_model(folder: Path) -> int:
    """A tiny model with its tokenizer, saved; the size of its vocabulary."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from realrl.models.adder import character_tokenizer

    torch.manual_seed(0)
    tokenizer = character_tokenizer()
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    Qwen2ForCausalLM(Qwen2Config(**sizes, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def case(folder: Path, steps: int, tokens: bool) -> dict:
    """The steps of one run in `folder`."""
    import torch

    import realrl.training.gradient as stepping
    import realrl.training.loop as loop
    import realrl.training.recorder as recording
    from realrl.config import parse_config
    from realrl.models.logprobs import TokenStats
    from realrl.rewards.grader import Grader
    from realrl.rundir.metrics import MetricsFile
    from realrl.system.memory import keep_freed_memory
    from realrl.training.distributed import World
    from realrl.training.rollouts import Collector
    from realrl.training.setup import prepare
    from realrl.types import Verdict

    keep_freed_memory()
    torch.set_num_threads(1)
    make_model(folder / "model")
    recipe = {
        "run": {"dir": str(folder / "run"), "threads": 1},
        "model": {"path": str(folder / "model"), "device": "cpu"},
        "data": {"train": "column_addition"},
        "sampling": {"group_size": GROUP, "max_new_tokens": LONGEST, "temperature": 0.6},
        "objective": {"type": "real"},
        "train": {
            "steps": steps + 1,
            "prompts_per_step": PROMPTS,
            "mini_batch_prompts": 32,
            "micro_batch_tokens": 32768,
            "gradient_route": "auto",
        },
        "checkpoint": {"every": 1},
        "log": {"rollouts": True, "tokens": tokens},
    }
    config, world, laps = parse_config(recipe), World(), Laps()
    run = prepare(config, world)
    before = resident_mib()
    run.sampler = StubSampler(run.model.config.vocab_size)
    answers = iter(range(10**9))
    run.grader = Grader(lambda response, golds, policy: Verdict("correct" if next(answers) % 2 else "wrong", "1"))
    weight = next(run.model.parameters())

    def stats(model, part, temperature, layout) -> TokenStats:
        shift = weight.flatten()[0] * 1e-3
        return TokenStats(part.logprobs_sampler + shift, part.loss_mask.float(), part.loss_mask.float())

    stepping.token_stats_of = laps.around("model", stats)
    for name, owner, attribute in (
        ("batch", loop, "make_batch"),
        ("update: tensors", loop, "update_policy"),
        ("update: plans", stepping, "plan_micro_batches"),
        ("metrics", recording, "_reward_metrics"),
        ("metrics", recording, "_update_metrics"),
        ("rows", recording, "_rollout_rows"),
        ("token columns", recording, "_token_columns"),
        ("parquet", recording, "write_rollouts"),
    ):
        setattr(owner, attribute, laps.around(name, getattr(owner, attribute)))
    run.optimizer.step = laps.around("optimizer", run.optimizer.step)
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text("")
    metrics = MetricsFile(folder / "run" / "metrics.jsonl")
    recorder = recording.Recorder(folder / "run", world, None, metrics, [], save_rollouts=True, save_tokens=tokens)
    recorder.step = laps.around("other recording", recorder.step)
    recorder.checkpoint = laps.around("checkpoint without weights", recorder.checkpoint)
    laps_by_step: list[dict[str, float]] = []
    with loop.StopRequest(recorder) as stop, Collector(run) as collector:
        collector.collect = laps.around("collect", collector.collect)
        inner = recorder.checkpoint

        def lap(*arguments):
            inner(*arguments)
            laps_by_step.append(dict(laps.seconds))
            laps.seconds.clear()

        recorder.checkpoint = lap
        loop.train_loop(run, collector, recorder, stop)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    names = sorted({name for one in laps_by_step for name in one} - {"model", "optimizer"})
    parts = {name: statistics.median(one.get(name, 0.0) for one in laps_by_step[1:]) for name in names}
    host = sum(seconds for name, seconds in parts.items() if name != "update: tensors")
    return {
        "log.tokens": tokens,
        "response_tokens": run.sampler.tokens,
        "cpu_seconds": {name: round(seconds, 3) for name, seconds in sorted(parts.items(), key=lambda item: -item[1])},
        "host_cpu_seconds": round(host, 2),
        "two_percent_of_s": round(host / 0.02),
        "peak_mib": round(peak),
        "parquet_mib_a_step": round(next((folder / "run" / "rollouts").iterdir()).stat().st_size / 2**20, 1),
    }


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def report(folder: Path) -> dict:
    """`realrl report` of the run in `folder`: CPU seconds, MiB at its peak, MiB of the page."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    page = folder / "report.html"
    subprocess.run(
        [sys.executable, "-m", "realrl", "report", str(folder / "run"), "-o", str(page)], check=True, stdout=subprocess.DEVNULL
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"report_cpu_seconds": round(seconds, 1), "page_mib": round(page.stat().st_size / 2**20, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--case", nargs=2, metavar=("FOLDER", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(case(Path(arguments.case[0]), arguments.steps, arguments.case[1] == "True")))
        return
    for tokens in (False, True):
        with tempfile.TemporaryDirectory() as name:
            command = [sys.executable, __file__, "--steps", str(arguments.steps), "--case", name, str(tokens)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            print(json.dumps(found | report(Path(name)), indent=1))


if __name__ == "__main__":
    main()
