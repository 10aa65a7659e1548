"""What each rank of tests/training/test_evaluation.py runs: the evaluation of five held-out problems."""

import json
from pathlib import Path

from realrl.config import parse_config
from realrl.rewards import Grader
from realrl.rundir.metrics import MetricsFile
from realrl.training.distributed import join_world
from realrl.training.evaluation import evaluate_held_out
from realrl.training.progress import Progress
from realrl.training.recorder import Recorder
from realrl.training.setup import Run
from realrl.types import Problem, Prompt, Rollout, Verdict

COUNT = 5
SAMPLES = 3


class SeedSampler:
    """Each response names its prompt and its seed."""

    def sample(self, prompts, *, group_size, params, seeds, on_finished=None):
        texts = [f"{prompts[row // group_size][0]} {seed}" for row, seed in enumerate(seeds)]
        return [Rollout(row // group_size, (1,), (0.0,), text, False) for row, text in enumerate(texts)]

    def update_weights(self, model):
        raise NotImplementedError


def main(out: str) -> None:
    """Write what this rank graded to `out/graded_RANK.json`; the first rank also writes the run folder `out`."""
    folder, graded = Path(out), []

    def verifier(response, golds, policy):
        graded.append(response)
        return Verdict("correct" if int(response.split()[1]) % 2 else "wrong", response)

    tables = {"model": {"path": "tiny-adder"}, "data": {"train": "addition"}, "eval": {"samples": SAMPLES, "greedy": False}}
    config = parse_config(tables | {"objective": {"type": "real"}})
    with join_world() as world:
        run = Run(
            config=config,
            sampler=SeedSampler(),
            grader=Grader(verifier),
            held_out={"set": [Prompt(Problem(f"p{i}", "", ""), "", (i,)) for i in range(COUNT)]},
            world=world,
            **dict.fromkeys(
                ("model", "reference", "tokenizer", "objective", "optimizer", "prompts", "device", "rates", "notes")
            ),
        )
        metrics = MetricsFile(folder / "metrics.jsonl") if world.is_main else None
        progress = Progress(seed=0, rounds=2, evaluation_due=True)
        evaluate_held_out(run, Recorder(folder, world, None, metrics, config.log), progress)
        assert not progress.evaluation_due
        (folder / f"graded_{world.rank}.json").write_text(json.dumps(graded))
