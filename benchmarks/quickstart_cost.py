"""What the quick start computes and how long it takes, as a ratio to plain products of as many operations.

    python benchmarks/quickstart_cost.py [KEY=VALUE …]

Runs `realrl train recipes/quickstart.toml` in a process of its own (keys of the recipe may be overridden) and counts its
operations by `realrl.training.estimate` with the lengths and groups that came out. Divides its time by that of plain matrix
products of the model's shape, timed before and after the run, in the precision of each part. Prints JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from realrl.config import Config, load_config
from realrl.data import load_problems, render_prompts
from realrl.models import load_tokenizer
from realrl.models.precision import sampling_dtype, training_dtype
from realrl.models.shape import Shape, meta_model
from realrl.models.tree import common_prefix
from realrl.training.estimate import Lengths, Work, sampling_work, update_work

RECIPE = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
# Tokens of the plain product: about those of a micro-batch.
TOKENS, SECONDS = 1024, 3.0


def plain_rate(dtype: str, hidden: int, wide: int) -> float:
    """FLOP/s of a plain product with all threads."""
    kind = getattr(torch, dtype)
    a, b = torch.randn(TOKENS, hidden).to(kind), torch.randn(hidden, wide).to(kind)
    torch.mm(a, b)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        torch.mm(a, b)
        count += 1
    return 2 * TOKENS * hidden * wide * count / (time.perf_counter() - began)


def prompt_lengths(config: Config) -> Lengths:
    problems = load_problems(config.data.eval[0], count=config.eval.problems, split="eval", task_options=config.data.task)
    tokenizer = load_tokenizer(config.model.path)
    prompts = render_prompts(list(problems.problems[:]), tokenizer, config.data).prompts
    mean = sum(len(prompt.token_ids) for prompt in prompts) / len(prompts)
    return Lengths(mean, 0, common_prefix([prompt.token_ids for prompt in prompts]))


def counted(config: Config, folder: Path) -> dict[str, Work]:
    """The work of each part of a finished run."""
    model, _ = meta_model(config.model.path, dtype=torch.float32)
    shape, prompt = Shape.of(model), prompt_lengths(config)
    section = config.sampling
    width = 2 if sampling_dtype(config) == "bfloat16" else 4
    parts = {"sampling": Work(), "updates": Work(), "evaluation": Work()}

    def sampled(prompts: int, samples: int, lengths: Lengths, longest: int) -> Work:
        at_once = section.batch_rows
        return sampling_work(shape, prompts, samples, lengths, rows_at_once=at_once, longest=longest, width=width)

    for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if "reward/mean" not in record:
            continue
        lengths = replace(prompt, response=record["response/length_mean"], active=record["compute/rollouts_share"])
        longest = int(record["response/length_max"])
        parts["sampling"] += sampled(config.train.prompts_per_step, section.group_size, lengths, longest)
        parts["updates"] += update_work(config, shape, lengths)
    for file in (folder / "eval").glob("*.parquet"):
        tokens = pq.read_table(file, columns=["tokens"])["tokens"].to_pylist()
        lengths = replace(prompt, response=sum(tokens) / len(tokens))
        parts["evaluation"] += sampled(len(tokens), 1, lengths, max(tokens))
    return parts


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        words = [f"--{key}={value}" for key, value in (word.split("=", 1) for word in sys.argv[1:])]
        words += [f"--run.dir={folder}", "--log.rich=false"]
        load_tokenizer("smollm2-135m")  # the model is made at its first use
        before = {dtype: plain_rate(dtype, 576, 1536) for dtype in ("float32", "bfloat16")}
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "realrl", "train", str(RECIPE), *words], check=True, stdout=sys.stderr)
        took = time.perf_counter() - began
        config = load_config(folder / "config.toml")
        used = {training_dtype(config), sampling_dtype(config)}
        rates = {dtype: (before[dtype] + plain_rate(dtype, 576, 1536)) / 2 for dtype in used}
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        result: dict[str, Any] = {"seconds": round(took, 1), "in_the_loop_s": round(records[-1]["time/run_s"], 1)}
        plain = 0.0
        for name, work in counted(config, folder).items():
            dtype = training_dtype(config) if name == "updates" else sampling_dtype(config)
            operations = work.forward + work.backward
            plain += operations / rates[dtype]
            result[name] = {"TFLOP": round(operations / 1e12, 2), "plain_s": round(operations / rates[dtype], 1)}
        steps = [record for record in records if "time/step_s" in record]
        result["sampling"]["seconds"] = round(sum(record["time/collect_s"] for record in steps), 1)
        result["updates"]["seconds"] = round(sum(record["time/update_s"] for record in steps), 1)
        result |= {
            "gflops": {dtype: round(rate / 1e9) for dtype, rate in rates.items()},
            "threads": torch.get_num_threads(),
            "gflops_before": {dtype: round(before[dtype] / 1e9) for dtype in used},
            "plain_s": round(plain, 1),
            "ratio": round(records[-1]["time/run_s"] / plain, 2),
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
