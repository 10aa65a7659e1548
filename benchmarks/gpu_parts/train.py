"""The quick start's recipe through the command line, from random weights: train twice, resume, evaluate."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import versions

from gpu_parts.part import ROOT, Part, environment
from gpu_parts.tables import last_line

STEPS = 4


def run(part: Part) -> None:
    """A first run, a second one, one resumed from the checkpoint in the middle of the first, and an evaluation."""
    model = part.folder / "model"
    part.add("model", write_model(model, part.tiny))
    first, second, resumed = (part.folder / name for name in ("first", "second", "resumed"))
    took = {}

    def command(what: str, *words: object) -> None:
        started = time.time()
        whole = [sys.executable, "-m", "realrl", *map(str, words)]
        done = subprocess.run(
            whole, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, timeout=max(part.left, 1), check=False
        )
        print(done.stderr, file=sys.stderr)
        if done.returncode:
            raise RuntimeError(f"{what}: realrl ended with status {done.returncode}: {last_line(done.stderr)}")
        took[what] = round(time.time() - started, 1)
        part.add("seconds", took)

    recipe = [ROOT / "recipes" / "quickstart.toml", *overrides(model, part)]
    command("train", "train", *recipe, "--run.dir", first, "--overwrite")
    part.add("steps", steps_of(first))
    command("train again", "train", *recipe, "--run.dir", second, "--overwrite")
    part.add("second_run", difference(first, second))
    shutil.rmtree(resumed, ignore_errors=True)
    shutil.copytree(first, resumed)
    shutil.rmtree(resumed / "checkpoints" / f"step_{STEPS}")
    command("resume", "train", *recipe, "--run.dir", resumed, "--resume")
    part.add("resumed_run", difference(first, resumed))
    runs = {"second": part.results["second_run"], "resumed": part.results["resumed_run"]}
    part.summary = "; ".join(
        f"the {name} run " + ("equals the first bit for bit" if not found else f"differs: {', '.join(found)}")
        for name, found in runs.items()
    )
    checkpoint, output = first / "checkpoints" / f"step_{STEPS}", part.folder / "evaluation"
    shutil.rmtree(output, ignore_errors=True)
    options = ["--samples", 2, "--problems", 4 if part.tiny else 32, "--engine", "hf", "-o", output]
    command("evaluate", "eval", checkpoint, "--recipe", first / "config.toml", "-b", "largest_of_three", *options)
    part.add("evaluation", [path.name for path in sorted(output.iterdir())])


def overrides(model: Path, part: Part) -> list[object]:
    """What the check changes in the recipe."""
    changed = {
        "model.path": model,
        "model.device": part.device,
        "reward.type": "gpu_parts.reward:even",
        "train.steps": STEPS,
        "checkpoint.every": STEPS // 2,
        "checkpoint.keep": 4,
        "eval.problems": 4 if part.tiny else 32,
        "log.tokens": "true",
        "log.rich": "false",
        "log.figure": "false",
    }
    if part.device == "cpu":
        changed |= {"model.autocast": "none", "sampling.dtype": "same"}
    if part.tiny:
        changed |= {"train.prompts_per_step": 2, "train.mini_batch_prompts": 2, "sampling.group_size": 4}
    return [word for name, value in changed.items() for word in (f"--{name}", value)]


def write_model(folder: Path, tiny: bool) -> dict[str, Any]:
    """Random weights of SmolLM2-135M's architecture and a tokenizer: its own where its package is there, else characters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from realrl.models import load_tokenizer, smollm2
    from realrl.models.adder import character_tokenizer

    # Read with two more packages.
    own = not tiny and smollm2.available() and all(versions(["gguf", "accelerate"]).values())
    tokenizer = load_tokenizer("smollm2-135m") if own else character_tokenizer()
    if not own:
        # Random weights draw any token of the vocabulary: each needs a text.
        tokenizer.add_tokens([f"<{token}>" for token in range(256 if tiny else 49152 - len(tokenizer))])
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2} if tiny else {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}  # fmt: skip
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        num_key_value_heads=1 if tiny else 3,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters(), "tokenizer": "smollm2" if own else "characters and made-up words"}


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[dict[str, float]]:
    """What each step took and made."""
    names = ("step", "reward/mean", "loss", "grad/norm", "throughput/tokens_per_s")
    wanted = [*names, "time/sample_s", "time/update_s"]
    return [{name: record[name] for name in wanted if name in record} for record in records(run) if "reward/mean" in record]


def difference(one: Path, other: Path) -> list[str]:
    """What is not bit for bit equal in two runs, with the first step at which it is not; empty where everything is."""
    import pyarrow.parquet as pq
    import torch
    from safetensors.torch import load_file

    found = []
    for path in sorted(one.glob("rollouts/*.parquet")):
        ours, theirs = (pq.read_table(run / "rollouts" / path.name) for run in (one, other))
        if unequal := [name for name in ours.column_names if not ours[name].equals(theirs[name])]:
            found.append(f"rollouts from {path.stem} on ({', '.join(unequal)})")
            break
    for a, b in itertools.zip_longest(records(one), records(other), fillvalue={}):
        names = [name for name in {**a, **b} if not name.startswith(("time", "throughput/"))]
        # As text, in which NaN equals itself.
        if unequal := [name for name in names if repr(a.get(name)) != repr(b.get(name))]:
            found.append(f"metrics from step {a.get('step')} on ({', '.join(unequal[:5])})")
            break
    for step in range(STEPS // 2, STEPS + 1, STEPS // 2):
        ours, theirs = (load_file(run / "checkpoints" / f"step_{step}" / "model.safetensors") for run in (one, other))
        if unequal := [name for name in ours if not torch.equal(ours[name], theirs[name])]:
            largest = max(float((ours[name] - theirs[name]).abs().max()) for name in unequal)
            found.append(f"weights of step {step} ({len(unequal)} of {len(ours)} tensors, by up to {largest:.1e})")
            break
    return found
