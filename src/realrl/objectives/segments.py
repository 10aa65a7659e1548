"""Reductions over groups of any sizes in any order, reductions over tokens, and rewards as labels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def group_index(group_ids_N: Int[Tensor, " N"]) -> tuple[Int[Tensor, " N"], int]:
    """Renumber arbitrary ids to 0..P−1; returns the numbers and P."""
    unique, index_N = torch.unique(group_ids_N, return_inverse=True)
    return index_N, len(unique)


def in_float64(values: Tensor) -> Tensor:
    """The values in float64; values on an Apple GPU, which lacks float64, move to the CPU."""
    return values.to("cpu" if values.device.type == "mps" else values.device, torch.float64)


def segment_sum(values_N: Float[Tensor, " N"], index_N: Int[Tensor, " N"], count: int) -> Float[Tensor, " P"]:
    """The sum of the values in each segment; 0 for an empty segment."""
    return values_N.new_zeros(count).index_add(0, index_N, values_N)


def group_centred(values_N: Float[Tensor, " N"], index_N: Int[Tensor, " N"], count: int) -> Float[Tensor, " N"]:
    """Each value minus the mean of its group; exactly 0 if all values of a group are equal."""
    # In float32 the mean of equal values may differ from them by a bit; dividing by their deviation would make that large.
    exact_N = in_float64(values_N)
    index_N = index_N.to(exact_N.device)
    size = segment_sum(torch.ones_like(exact_N), index_N, count)
    centred_N = exact_N - (segment_sum(exact_N, index_N, count) / size)[index_N]
    return centred_N.to(values_N.device, values_N.dtype)


def segment_logsumexp(
    values_N: Float[Tensor, " N"], index_N: Int[Tensor, " N"], count: int, *, anchor: bool
) -> Float[Tensor, " P"]:
    """log Σ e^v of each segment, plus a term e^0 if `anchor`; without the anchor an empty segment gives −inf.

    Stable for any finite values, because the largest term is factored out.
    """
    start = 0.0 if anchor else -torch.inf
    largest = torch.full((count,), start, dtype=values_N.dtype, device=values_N.device)
    largest = largest.scatter_reduce(0, index_N, values_N.detach(), "amax")
    finite = torch.where(largest.isinf(), 0, largest)
    total = segment_sum((values_N - finite[index_N]).exp(), index_N, count)
    if anchor:
        total = total + (-finite).exp()
    return total.log() + finite


def masked_token_mean(values_NT: Float[Tensor, "N T"], loss_mask: Bool[Tensor, "N T"]) -> Float[Tensor, " N"]:
    """The mean over the response tokens of each rollout; padding may hold any value."""
    return torch.where(loss_mask, values_NT, 0).sum(dim=1) / loss_mask.sum(dim=1)


def labels(rewards_N: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """True where the reward is 1. Raises ValueError for any reward other than 0 and 1.

    The released code compares with == 1 and == 0 instead, so rewards of ±1 silently give it a wrong loss.
    """
    right_N = rewards_N == 1
    other = rewards_N[~right_N & (rewards_N != 0)]
    if len(other):
        found = sorted(set(other.tolist()))[:5]
        raise ValueError(
            f"rewards hold {found}; this objective uses rewards as class labels and needs 0 or 1: "
            "convert them, for example with (rewards > 0.5).float()"
        )
    return right_N


def mixed_groups(positive_N: Bool[Tensor, " N"], index_N: Int[Tensor, " N"], count: int) -> Bool[Tensor, " P"]:
    """The groups with both a positive and a negative rollout."""
    right = segment_sum(positive_N.float(), index_N, count)
    wrong = segment_sum((~positive_N).float(), index_N, count)
    return (right > 0) & (wrong > 0)
