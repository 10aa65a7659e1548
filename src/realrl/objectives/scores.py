"""Segment reductions over ragged groups in any order, and the score s̄ of a rollout."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from realrl.types import LossInputs, LossTotals


def group_index(group_ids_N: Int[Tensor, " N"]) -> tuple[Int[Tensor, " N"], int]:
    """Ids of any value as 0..P−1, and P."""
    unique, index_N = torch.unique(group_ids_N, return_inverse=True)
    return index_N, len(unique)


def in_float64(values: Tensor) -> Tensor:
    """The values in float64, which Apple's devices lack: theirs go to the CPU."""
    return values.to("cpu" if values.device.type == "mps" else values.device, torch.float64)


def segment_sum(values_N: Float[Tensor, " N"], index_N: Int[Tensor, " N"], count: int) -> Float[Tensor, " P"]:
    """Sum of the values of each segment; 0 for an empty one."""
    return values_N.new_zeros(count).index_add(0, index_N, values_N)


def group_centred(values_N: Float[Tensor, " N"], group_ids_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Each value minus the mean of its group; exactly 0 where all of a group are equal."""
    index_N, count = group_index(group_ids_N)
    # In float32 the mean of equal values may miss them by a bit, which a division by their deviation makes large.
    exact_N = in_float64(values_N)
    index_N = index_N.to(exact_N.device)
    size = segment_sum(torch.ones_like(exact_N), index_N, count)
    centred_N = exact_N - (segment_sum(exact_N, index_N, count) / size)[index_N]
    return centred_N.to(values_N.device, values_N.dtype)


def segment_logsumexp(
    values_N: Float[Tensor, " N"], index_N: Int[Tensor, " N"], count: int, *, anchor: bool
) -> Float[Tensor, " P"]:
    """log Σ e^v of each segment, with one more term e^0 where `anchor`; without it an empty segment gives −inf.

    Stable for any finite values: the largest term is taken out first.
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
    """Mean over the response tokens of each rollout; padding may hold anything."""
    return torch.where(loss_mask, values_NT, 0).sum(dim=1) / loss_mask.sum(dim=1)


def log_ratio(inputs: LossInputs) -> Float[Tensor, "N T"]:
    """s_t = log π_θ − log π_old (Eq. 4), 0 on padding."""
    return torch.where(inputs.loss_mask, inputs.logprobs_policy - inputs.logprobs_old, 0)


def mean_log_ratio(inputs: LossInputs) -> Float[Tensor, " N"]:
    """s̄ = mean_t s_t (Eq. 5)."""
    return masked_token_mean(inputs.logprobs_policy - inputs.logprobs_old, inputs.loss_mask)


def labels(rewards_N: Float[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """True where the reward is 1. Raises ValueError for any reward but 0 and 1.

    Differs from the released code, which compares with == 1 and == 0: a grader of ±1 gives it loss 0 without a word.
    """
    right_N = rewards_N == 1
    other = rewards_N[~right_N & (rewards_N != 0)]
    if len(other):
        found = sorted(set(other.tolist()))[:5]
        raise ValueError(
            f"rewards hold {found}; this objective reads rewards as class labels and needs 0 or 1: "
            "map the grader's output, e.g. (rewards > 0.5).float()"
        )
    return right_N


def mixed_groups(positive_N: Bool[Tensor, " N"], index_N: Int[Tensor, " N"], count: int) -> Bool[Tensor, " P"]:
    """Groups that hold both a positive and a negative rollout."""
    right = segment_sum(positive_N.float(), index_N, count)
    wrong = segment_sum((~positive_N).float(), index_N, count)
    return (right > 0) & (wrong > 0)


def preference_pairs(
    levels_N: Int[Tensor, " N"], group_ids_N: Int[Tensor, " N"]
) -> tuple[Int[Tensor, " M"], Int[Tensor, " M"]]:
    """Indices (w, l) of every pair of one group in which level(w) is above level(l)."""
    same = group_ids_N[:, None] == group_ids_N[None, :]
    better, worse = (same & (levels_N[:, None] > levels_N[None, :])).nonzero(as_tuple=True)
    return better, worse


def count_preference_pairs(levels_N: Int[Tensor, " N"], group_ids_N: Int[Tensor, " N"]) -> int:
    """The number of `preference_pairs`, from the sizes of groups and of levels in them: memory grows with N, not N²."""
    size_P = group_ids_N.unique(return_counts=True)[1]
    alike = torch.stack([group_ids_N, levels_N]).unique(dim=1, return_counts=True)[1]
    return int((size_P**2).sum() - (alike**2).sum()) // 2


def default_levels(rewards_N: Float[Tensor, " N"], levels_N: Int[Tensor, " N"] | None) -> Int[Tensor, " N"]:
    """TRPA's levels where given, else 2 where the reward is 1 and 1 elsewhere."""
    return levels_N if levels_N is not None else 1 + (rewards_N == 1).long()


def totals_of(inputs: LossInputs) -> LossTotals:
    """Denominators of inputs that are a whole mini-batch."""
    return step_totals(inputs.rewards, inputs.group_ids, inputs.loss_mask.sum(dim=1), inputs.levels)


def step_totals(
    rewards_N: Float[Tensor, " N"],
    group_ids_N: Int[Tensor, " N"],
    tokens_N: Int[Tensor, " N"],
    levels_N: Int[Tensor, " N"] | None = None,
) -> LossTotals:
    """Denominators of a whole mini-batch before its log-probabilities are known; `tokens_N` counts response tokens."""
    index_N, count = group_index(group_ids_N)
    mixed = mixed_groups(rewards_N == 1, index_N, count)
    return LossTotals(
        num_groups=count,
        num_rollouts=len(rewards_N),
        num_tokens=int(tokens_N.sum()),
        num_mixed_rollouts=int(mixed[index_N].sum()),
        num_pairs=count_preference_pairs(default_levels(rewards_N, levels_N), group_ids_N),
    )
