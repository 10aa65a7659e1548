"""Rollouts become a `Batch` of whole groups, which is cut into mini-batches of groups and micro-batches of limited tokens."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from realrl.models.prefix import common_prefix
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


def plan_micro_batches(batch: Batch, rows: Tensor, budget: int, *, whole_groups: bool, sort: bool = True) -> list[Tensor]:
    """Split `rows` into the cheapest micro-batches of at most `budget` tokens.

    A micro-batch costs its tokens, padding included, and a constant for the pass. Each group's prompt counts once, and so does
    the common start of all prompts. With `whole_groups` a micro-batch holds whole groups. A group or row above the budget gets
    a micro-batch of its own. With `sort`, rows are first ordered by length, or by group if sharing prompts makes that cheaper.
    """
    if not len(rows):
        return []
    lengths = batch.loss_mask.sum(dim=1).cpu()[rows].numpy()
    groups = batch.group_ids.cpu()[rows].numpy()
    longest_of_group = np.zeros(int(groups.max()) + 1, dtype=np.int64)
    np.maximum.at(longest_of_group, groups, lengths)
    by_group = np.lexsort((lengths, groups, longest_of_group[groups]))
    if whole_groups:
        orders = [by_group if sort else np.argsort(groups, kind="stable")]
    else:
        orders = [by_group, np.argsort(lengths, kind="stable")] if sort else [np.arange(len(groups))]
    common, prompts = _prompt_tokens(batch)
    plans = [
        (cost, [rows[torch.from_numpy(order[part])] for part in parts])
        for order in orders
        for cost, parts in [_cheapest_cut(lengths[order], groups[order], common, prompts, budget, whole_groups)]
    ]
    return min(plans, key=lambda plan: plan[0])[1]


def padded_tokens(batch: Batch, parts: Sequence[Tensor]) -> list[int]:
    """Tokens of each micro-batch that go through the model, padding included; each group's prompt counts once, and so does the
    common start of all prompts."""
    common, prompts = _prompt_tokens(batch)
    lengths = batch.loss_mask.sum(dim=1).cpu()
    group_ids = batch.group_ids.cpu()
    groups = [group_ids[rows].unique().tolist() for rows in parts]
    return [
        common + len(rows) * int(lengths[rows].max()) + len(own) * int(prompts[own].max())
        for rows, own in zip(parts, groups, strict=True)
    ]


def _prompt_tokens(batch: Batch) -> tuple[int, np.ndarray]:
    """How many first tokens all prompts share, and how many more each prompt has."""
    sequences = [prompt.token_ids for prompt in batch.prompts]
    common = common_prefix(sequences)
    return common, np.array([len(sequence) - common for sequence in sequences])


def _cheapest_cut(
    lengths: np.ndarray, groups: np.ndarray, common: int, prompts: np.ndarray, budget: int, whole_groups: bool
) -> tuple[float, list[slice]]:
    """The cheapest split of rows in this order into consecutive parts, by dynamic programming: its cost and the parts."""
    count = len(lengths)
    starts = np.arange(count)
    last_of_group: dict[int, int] = {}
    distinct = np.zeros(count, dtype=np.int64)  # groups in [start, end)
    longest_response = np.zeros(count, dtype=np.int64)
    longest_prompt = np.zeros(count, dtype=np.int64)
    best = np.concatenate([[0.0], np.full(count, np.inf)])
    cut = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        group = int(groups[end - 1])
        distinct[last_of_group.get(group, -1) + 1 : end] += 1
        last_of_group[group] = end - 1
        np.maximum(longest_response[:end], lengths[end - 1], out=longest_response[:end])
        np.maximum(longest_prompt[:end], prompts[group], out=longest_prompt[:end])
        if whole_groups and end < count and groups[end] == group:
            continue
        tokens = common + distinct[:end] * longest_prompt[:end] + (end - starts[:end]) * longest_response[:end]
        # A single row or group is allowed whatever it costs.
        allowed = (tokens <= budget) | (distinct[:end] == 1 if whole_groups else starts[:end] == end - 1)
        total = np.where(allowed, best[:end] + tokens + _PASS_TOKENS, np.inf)
        cut[end] = int(total.argmin())
        best[end] = total[cut[end]]
    parts: list[slice] = []
    end = count
    while end:
        parts.append(slice(int(cut[end]), end))
        end = int(cut[end])
    return float(best[count]), parts[::-1]
