"""Rollouts become a `Batch` of whole groups, which is cut into mini-batches of groups and micro-batches of limited tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from realrl.models.layouts import Layout, row_sequences
from realrl.models.tree import common_start, sorted_prefixes
from realrl.types import Batch, Prompt, Rollout, Verdict

# Fixed cost of one pass through the model, expressed in tokens.
_PASS_TOKENS = 256


def make_batch(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], device: torch.device
) -> Batch:
    """Rollouts, right-padded to the longest; `group_ids` are indices into `prompts`."""
    lengths = torch.tensor([len(rollout.token_ids) for rollout in rollouts])
    loss_mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(loss_mask.shape, dtype=torch.long)
    logprobs = torch.zeros(loss_mask.shape)
    # The mask selects row by row, without padding. numpy reads tuples three times as fast as torch.
    ids[loss_mask] = torch.from_numpy(_joined([rollout.token_ids for rollout in rollouts], np.int64))
    logprobs[loss_mask] = torch.from_numpy(_joined([rollout.logprobs_sampler for rollout in rollouts], np.float32))
    return Batch(
        prompts=list(prompts),
        response_ids=ids.to(device),
        loss_mask=loss_mask.to(device),
        group_ids=torch.tensor([rollout.prompt_index for rollout in rollouts], device=device),
        rewards=torch.tensor([verdict.reward for verdict in verdicts], device=device),
        levels=torch.tensor([verdict.level for verdict in verdicts], device=device),
        logprobs_sampler=logprobs.to(device),
    )


def _joined(sequences: Sequence[Sequence[float]], dtype: type) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(sequences), dtype, sum(map(len, sequences)))


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """The given rows, as wide as the longest response among them."""
    loss_mask = batch.loss_mask[rows]
    longest = int(loss_mask.sum(dim=1).max())
    return Batch(
        prompts=batch.prompts,
        response_ids=batch.response_ids[rows, :longest],
        loss_mask=loss_mask[:, :longest],
        group_ids=batch.group_ids[rows],
        rewards=batch.rewards[rows],
        levels=batch.levels[rows],
        logprobs_sampler=batch.logprobs_sampler[rows, :longest],
    )


def mini_batches(batch: Batch, groups_each: int, generator: torch.Generator) -> list[Tensor]:
    """Row indices of each update: `groups_each` whole groups, in random order."""
    order = torch.randperm(len(batch.prompts), generator=generator)
    group_ids = batch.group_ids.cpu()
    return [torch.isin(group_ids, part).nonzero().flatten() for part in order.split(groups_each)]


class MicroBatches(NamedTuple):
    """The rows of each micro-batch, and its tokens that go through the model."""

    rows: list[Tensor]
    tokens: list[int]


def plan_micro_batches(
    batch: Batch, rows: Tensor, budget: int, layout: Layout, *, whole_groups: bool, sort: bool = True
) -> MicroBatches:
    """Split `rows` into the cheapest micro-batches of at most `budget` tokens.

    A micro-batch costs the tokens that go through the model in this layout, and a constant for the pass. With `whole_groups` it
    holds whole groups. A group or row above the budget gets a micro-batch of its own. With `sort`, rows with a common start
    come together, or rows of similar length; without it they keep their order.
    """
    if not len(rows):
        return MicroBatches([], [])
    sequences = row_sequences(select_rows(batch, rows))
    groups = batch.group_ids.cpu()[rows].numpy()
    order = _order(sequences, groups, layout, whole_groups=whole_groups) if sort else np.arange(len(rows))
    groups = groups[order]
    may_cut = groups[1:] != groups[:-1] if whole_groups else np.ones(len(rows) - 1, dtype=bool)
    tokens_to = _token_counts([sequences[index] for index in order], layout)
    parts = _cheapest_cut(tokens_to, may_cut, budget)
    return MicroBatches(
        [rows[torch.from_numpy(order[part])] for part in parts], [int(tokens_to(part.stop)[part.start]) for part in parts]
    )


def _order(sequences: Sequence[np.ndarray], groups: np.ndarray, layout: Layout, *, whole_groups: bool) -> np.ndarray:
    """For the tree rows with a common start come together, otherwise rows of similar length; whole groups stay together."""
    ranks = np.empty(len(sequences), dtype=np.int64)
    if layout == "tree":
        ranks[sorted_prefixes(sequences)[0]] = np.arange(len(sequences))
    else:
        ranks[:] = [len(sequence) for sequence in sequences]
    of_group = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    if whole_groups:
        np.maximum.at(of_group, groups, ranks)
        return np.lexsort((ranks, groups, of_group[groups]))
    return np.argsort(ranks, kind="stable")


def _token_counts(sequences: Sequence[np.ndarray], layout: Layout) -> Callable[[int], np.ndarray]:
    """A function of `end`: the tokens of a micro-batch of the rows from each start < end to `end`."""
    lengths = np.array([len(sequence) for sequence in sequences])
    if layout == "padded":
        # The longest of the rows from each start to the end.
        return lambda end: (end - np.arange(end)) * np.maximum.accumulate(lengths[:end][::-1])[::-1]
    shared = np.zeros(len(sequences), dtype=np.int64)
    if layout == "tree":
        shared[1:] = [common_start(one, other) for one, other in itertools.pairwise(sequences)]
    total = np.concatenate([[0], np.cumsum(lengths - shared)])
    # The first row of a micro-batch shares nothing with the row before it.
    return lambda end: total[end] - total[:end] + shared[:end]


def _cheapest_cut(tokens_to: Callable[[int], np.ndarray], may_cut: np.ndarray, budget: int) -> list[slice]:
    """The cheapest split of the rows into consecutive parts, by dynamic programming."""
    count = len(may_cut) + 1
    starts = np.concatenate([[True], may_cut])
    best = np.concatenate([[0.0], np.full(count, np.inf)])
    cut = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        if end < count and not starts[end]:
            continue
        tokens = tokens_to(end)
        allowed = starts[:end] & (tokens <= budget)
        # A single row or group is allowed whatever it costs.
        allowed[np.flatnonzero(starts[:end])[-1]] = True
        total = np.where(allowed, best[:end] + tokens + _PASS_TOKENS, np.inf)
        cut[end] = int(total.argmin())
        best[end] = total[cut[end]]
    parts: list[slice] = []
    end = count
    while end:
        parts.append(slice(int(cut[end]), end))
        end = int(cut[end])
    return parts[::-1]
