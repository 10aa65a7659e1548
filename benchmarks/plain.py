"""Plain autograd, one unpadded row at a time: what layouts, routes and devices are held against."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from realrl.types import Batch


def row_logprobs(model: PreTrainedModel, batch: Batch, row: int, temperature: float) -> Tensor:
    """Log-probabilities (T of this row) of one response in the model's own type, from the model's own logits."""
    prompt = list(batch.prompts[int(batch.group_ids[row])].token_ids)
    response = batch.response_ids[row][batch.loss_mask[row]]
    ids = torch.cat([torch.tensor(prompt), response])[None]
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(dim=-1).gather(1, response[:, None])[:, 0]


def gradient_of(model: torch.nn.Module) -> Tensor:
    """All gradients in one flat row, in float64 on the CPU."""
    return torch.cat([p.grad.double().cpu().flatten() for p in model.parameters() if p.grad is not None])
