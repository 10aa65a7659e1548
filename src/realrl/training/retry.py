"""Out of memory in a micro-batch: halve the token budget and compute again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from realrl.errors import TrainingError
from realrl.system.memory import out_of_memory
from realrl.training.gradient import MiniBatchGradient
from realrl.training.setup import Run
from realrl.types import Batch

_Result = TypeVar("_Result")


def retry_with_half_the_budget(run: Run, gradient: MiniBatchGradient, batch: Batch, compute: Callable[[], _Result]) -> _Result:
    """Return `compute()`, which uses `gradient` on `batch`. No gradient may have been added before.

    If memory runs out, clear the gradient, halve the token budget for the rest of the run, and call `compute` again: the
    gradient is the same with any budget. Raises TrainingError if a single sequence does not fit, and always with several
    ranks, because the others wait in an exchange that a repeated pass would not join.
    """
    while True:
        if run.micro_batch_tokens:
            gradient.settings = replace(gradient.settings, budget=run.micro_batch_tokens)
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0][:200]
        # Outside the handler, because the traceback keeps activations alive.
        run.optimizer.zero_grad(set_to_none=True)
        if run.device.type != "cpu":
            getattr(torch, run.device.type).empty_cache()
        budget, lengths = gradient.settings.budget, batch.loss_mask.sum(dim=1).tolist()
        prompts = [len(batch.prompts[group].token_ids) for group in batch.group_ids.tolist()]
        longest = max(length + prompt for length, prompt in zip(lengths, prompts, strict=True))
        if run.world.size > 1:
            raise TrainingError(
                f"out of memory with train.micro_batch_tokens = {budget} on rank {run.world.rank} ({reason}); halve it and "
                "--resume"
            )
        if budget <= longest:
            raise TrainingError(
                f"out of memory with one sequence of {longest} tokens at a time ({reason}); set model.gradient_checkpointing = "
                "true, lower sampling.max_new_tokens, or see docs/troubleshooting.md, Out of memory"
            )
        # Start from the size of the batch: halving a much larger budget would change nothing at first.
        run.micro_batch_tokens = max(min(budget, sum(lengths) + sum(prompts)) // 2, longest)
