"""Test a model before its log-probabilities are used: rows in a layout are compared with the same rows alone.

The correct values come from the model's own forward pass over one row without padding, in eval mode. The test of a layout uses
the model's current mode, adapters and head, on short rows and on one row of the longest length to come. Attention windows, and
rotary embeddings that depend on the length, show only in the long row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from realrl.errors import ModelError
from realrl.models.layouts import Layout, plain_options, stats_in
from realrl.models.modes import evaluating
from realrl.system.memory import out_of_memory
from realrl.types import Batch, Problem, Prompt

# The common prefix of the test prompts: long enough to be shared, and above the special tokens of most vocabularies.
_COMMON = (53, 71, 64, 91, 55, 89, 72, 66)
# Number of compared tokens: in the two rows of the short prompt; in the long row, minimum and maximum.
_SHORT_RESPONSES, _LONG_RESPONSE = (6, 3), (9, 128)
SHORT = len(_COMMON) + 2 + _LONG_RESPONSE[0]
"""Length in tokens of the longest row in the smallest test."""


def alone(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Float[Tensor, " T"]:
    """log π(o_t | q, o_<t) from the model's own forward pass over this row, in float32.

    Raises ModelError if the model cannot compute a row of this length.
    """
    tokens = torch.tensor(response, device=model.device)
    return _logits_alone(model, prompt, response).log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]


@torch.no_grad()
def _logits_alone(model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int]) -> Float[Tensor, "T V"]:
    row = torch.tensor([[*prompt, *response]], device=model.device)
    keep = len(response) + 1
    try:
        with evaluating(model):
            return model(input_ids=row, **plain_options(model, logits_to_keep=keep)).logits[0, -keep:-1].float()
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{type(model).__name__} itself fails on a row of {row.shape[1]} tokens ({reason_of(error)}); if the model has "
            "fewer positions, lower data.max_prompt_tokens or sampling.max_new_tokens"
        ) from error


def trial_prompts(model: PreTrainedModel, longest: int) -> list[tuple[int, ...]]:
    """Token ids of a short prompt and of a prompt with `longest` tokens."""
    (short, _), (prompt, response), _ = _rows(model, longest)
    return [short, prompt + response]


def tolerance_of(model: PreTrainedModel, *, of_attention: bool = False) -> float:
    """The allowed error of log-probabilities, as root mean square over tokens (nats): a small fraction of the change that
    another prompt makes.

    In a precision below float32, rounding may exceed this. The limit then follows from the size of the logits or, with
    `of_attention`, from the difference between two attention kernels.
    """
    rows = _rows(model, SHORT)
    own = torch.cat([alone(model, *row) for row in rows])
    other = torch.cat([alone(model, [token - 1 for token in prompt], response) for prompt, response in rows])
    exact = 1e-3 * _size(own - other)
    if model.dtype == torch.float32:
        return exact
    if of_attention:
        with _other_attention(model):
            return max(exact, 3 * _size(own - torch.cat([alone(model, *row) for row in rows])))
    largest = max(float(_logits_alone(model, *row).abs().max()) for row in rows)
    return max(50 * exact, 2 * torch.finfo(model.dtype).eps * largest)


@contextmanager
def _other_attention(model: PreTrainedModel) -> Iterator[None]:
    config: Any = model.config.get_text_config()
    before = config._attn_implementation
    config._attn_implementation = "sdpa" if before == "eager" else "eager"
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def layout_fault(model: PreTrainedModel, layout: Layout, length: int) -> str | None:
    """The reason why a layout is not exact on test rows, one of them with `length` tokens; None if it is exact.

    Raises ModelError if the model cannot compute a row of this length.
    """
    rows = _rows(model, length)
    wanted_M = torch.cat([alone(model, prompt, response) for prompt, response in rows])
    if not bool(wanted_M.isfinite().all()):
        # A diverged policy has nothing to compare; its updates are skipped.
        return None
    batch, tolerance = _batch(rows, model.device), tolerance_of(model, of_attention=layout != "padded")
    passes = 2 if any(module.training for module in model.modules()) else 1
    try:
        if layout != "padded" and not _uses_positions(model, rows[0][0]):
            return "it ignores position ids"
        found = [stats_in(model, batch, 1.0, layout).logprobs[batch.loss_mask] for _ in range(passes)]
    except Exception as error:  # noqa: BLE001  an unknown architecture may raise anything
        if out_of_memory(error):
            raise
        return reason_of(error)
    if not _size(found[0] - found[-1]) <= tolerance:
        return "two passes of the same weights differ: in training mode it has dropout or other noise"
    if not _size(found[0] - wanted_M) <= tolerance:
        return f"log-probabilities of a batch are up to {_most(found[0] - wanted_M):.2g} nats off those of its rows alone"
    return None


def _uses_positions(model: PreTrainedModel, row: Sequence[int]) -> bool:
    """Whether position ids change the logits. In low precision, the comparison of rows could miss that they do not."""
    ids = torch.tensor([row], device=model.device)
    places = torch.arange(len(row), device=model.device)[None]
    one, other = (model(input_ids=ids, position_ids=places * step, **plain_options(model)).logits for step in (1, 2))
    return not torch.equal(one, other)


def reason_of(error: Exception) -> str:
    """The exception as one line of text."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _size(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


def _most(difference: Tensor) -> float:
    return float(difference.abs().max())


def _rows(model: PreTrainedModel, length: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Three pairs of prompt and response. The first and third share a short prompt; the second has `length` tokens in total.
    Both prompts have a common prefix, and no token is 0."""
    embeddings: Any = model.get_input_embeddings()
    # Some models have more embeddings than tokens, some have more logits.
    most, least = min(len(embeddings.weight), model.config.get_text_config().vocab_size) - 1, _LONG_RESPONSE[0]
    compared = max(least, min(_LONG_RESPONSE[1], length - SHORT + least))
    drawn = torch.randint(1, most + 1, (length + sum(_SHORT_RESPONSES),), generator=torch.Generator().manual_seed(0)).tolist()
    common = tuple(token % most + 1 for token in _COMMON)
    first, second, rest = drawn[: _SHORT_RESPONSES[0]], drawn[: _SHORT_RESPONSES[1]], drawn[_SHORT_RESPONSES[0] :]
    short, long = (*common, rest[0]), (*common, *rest[1 : length - len(common) - compared + 1])
    return [(short, tuple(first)), (long, tuple(rest[-compared:])), (short, tuple(reversed(second)))]


def _batch(rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]], device: torch.device) -> Batch:
    lengths = torch.tensor([len(response) for _, response in rows])
    loss_mask = torch.arange(int(lengths.max())) < lengths[:, None]
    response_ids = torch.zeros(loss_mask.shape, dtype=torch.long)
    response_ids[loss_mask] = torch.tensor([token for _, response in rows for token in response])
    groups = torch.tensor([0, 1, 0], device=device)
    return Batch(
        prompts=[Prompt(Problem("", "", ""), "", prompt) for prompt, _ in rows[:2]],
        response_ids=response_ids.to(device),
        loss_mask=loss_mask.to(device),
        group_ids=groups,
        rewards=groups.float(),
        levels=groups,
        logprobs_sampler=torch.zeros(loss_mask.shape, device=device),
    )
