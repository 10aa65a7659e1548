"""GRPO's loss and gradient on one batch, through TRL's trainer and through ours: seconds, memory, and whether they agree."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from machine import forget_peak, peak_bytes, seconds, unless_out_of_memory, versions
from made_up import gradient_step, make_batch
from plain import gradient_of

from gpu_parts.part import Part
from gpu_parts.sizes import REAL, REPEATS, ROWS, TINY, build
from realrl.training.gradient import groups_of


def run(part: Part) -> None:
    """The 0.5B architecture, one group of 8, nothing cut into micro-batches. Without TRL: said, and no failure."""
    found = versions(["trl", "accelerate", "datasets"])
    part.add("versions", found)
    if missing := [name for name, version in found.items() if version is None]:
        part.summary = f"left out: {', '.join(missing)} not installed"
        return
    sizes = TINY if part.tiny else REAL
    model = build(part, "0.5b")
    # TRL changes the model that it is given.
    other = deepcopy(model)
    batch = make_batch(1, ROWS, sizes.lengths[0], sizes.vocabulary, part.device, prompt=sizes.prompt)
    gradients = {}
    for name, one, step in (("ours", model, our_step(model, batch)), ("trl", other, trl_step(other, batch, part))):
        forget_peak(part.device)
        before = peak_bytes(part.device)
        times = unless_out_of_memory(lambda: seconds(step, part.device, REPEATS), part.device)  # noqa: B023  called at once
        if times is None:
            part.add(name, "out of memory")
            continue
        peak = peak_bytes(part.device) - before
        part.add(name, {"seconds": statistics.median(times), "added_peak_gib": round(peak / 2**30, 3)})
        gradients[name] = gradient_of(one)
        one.zero_grad(set_to_none=True)
    if len(gradients) < 2:
        part.summary = "out of memory: " + ", ".join(name for name in ("ours", "trl") if name not in gradients)
        return
    ours, trl = part.results["ours"], part.results["trl"]
    time, memory = (trl[key] / ours[key] if ours[key] else None for key in ("seconds", "added_peak_gib"))
    cosine = float(torch.cosine_similarity(gradients["ours"], gradients["trl"], dim=0))
    part.add("trl_over_ours", {"seconds": time, "added_peak": memory, "cosine_of_gradients": cosine})
    shown = "unknown" if memory is None else f"{memory:.2f}"
    part.summary = f"TRL / ours: time {time:.2f}, added memory {shown}; cosine of the gradients {cosine:.6f}"


def our_step(model: Any, batch: Any) -> Callable[[], object]:
    """Forward and backward of all rows at once."""
    autocast = torch.bfloat16 if model.dtype == torch.bfloat16 else None
    objective = {"type": "grpo", "kl": {"target": "none", "coef": 0.0}}
    step = gradient_step(model, objective, budget=1 << 30, autocast=autocast)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        step.backward(batch, None, None)

    return run


def trl_step(model: Any, batch: Any, part: Part) -> Callable[[], object]:
    """The same through GRPOTrainer, which is given what it would have sampled."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import GRPOConfig, GRPOTrainer

    core = Tokenizer(models.WordLevel({"<eos>": 0, "x": 1}, unk_token="x"))
    on_cpu = part.device == "cpu"
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(dir=part.folder),
        loss_type="grpo",
        beta=0.0,
        temperature=1.0,
        num_generations=ROWS,
        per_device_train_batch_size=ROWS,
        max_completion_length=batch.response_ids.shape[1],
        gradient_checkpointing=False,
        use_cpu=on_cpu,
        bf16=not on_cpu,
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": ["x"] * ROWS}),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>"),
    )
    trainer.current_gradient_accumulation_steps = 1
    prompts = [torch.tensor(batch.prompts[group].token_ids, device=part.device) for group in batch.group_ids.tolist()]
    prompt_ids, prompt_mask = (
        torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
        for rows in (prompts, [torch.ones_like(row) for row in prompts])
    )
    step = gradient_step(model, "grpo")
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": batch.response_ids,
        "completion_mask": batch.loss_mask.long(),
        "advantages": step.objective.advantages(groups_of(batch)),
    }

    def run() -> None:
        model.zero_grad(set_to_none=True)
        trainer.compute_loss(model, inputs).backward()

    return run
