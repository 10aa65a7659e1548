"""Out of memory in a micro-batch: half the token budget, and the computation again from its beginning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from realrl.errors import TrainingError
from realrl.system.memory import out_of_memory
from realrl.train.setup import Run
from realrl.train.step import GradientStep
from realrl.types import Batch

_Result = TypeVar("_Result")


def fitting(run: Run, gradient: GradientStep, batch: Batch, compute: Callable[[], _Result]) -> _Result:
    """What `compute()` makes of `batch` with `gradient`, to which no earlier gradient may have been added.

    Where memory runs out, the gradient is taken back to nothing, the budget halved for the rest of the run, and `compute`
    called again: any budget gives the same gradient. Raises TrainingError where not even one sequence fits, and with several
    ranks, where the others wait in an exchange that a repeated pass would not meet.
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
        # Outside the handler: the traceback holds activations.
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
        # A budget above what there is to compute would have to be halved many times before that changes anything.
        run.micro_batch_tokens = max(min(budget, sum(lengths) + sum(prompts)) // 2, longest)
