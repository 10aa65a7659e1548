"""From rollouts to a `Batch` of whole groups, and its parts: mini-batches of groups, micro-batches by token budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from realrl.types import Batch, Prompt, Rollout, Verdict


def make_batch(
    prompts: Sequence[Prompt], rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], device: torch.device
) -> Batch:
    """Rollouts, right-padded to the longest; `group_ids` are indices into `prompts`."""
    longest = max(len(rollout.token_ids) for rollout in rollouts)
    ids = torch.zeros(len(rollouts), longest, dtype=torch.long)
    logprobs = torch.zeros(len(rollouts), longest)
    loss_mask = torch.zeros(len(rollouts), longest, dtype=torch.bool)
    for row, rollout in enumerate(rollouts):
        length = len(rollout.token_ids)
        ids[row, :length] = torch.tensor(rollout.token_ids)
        logprobs[row, :length] = torch.tensor(rollout.logprobs_sampler)
        loss_mask[row, :length] = True
    return Batch(
        prompts=list(prompts),
        response_ids=ids.to(device),
        loss_mask=loss_mask.to(device),
        group_ids=torch.tensor([rollout.prompt_index for rollout in rollouts], device=device),
        rewards=torch.tensor([verdict.reward for verdict in verdicts], device=device),
        levels=torch.tensor([verdict.level for verdict in verdicts], device=device),
        logprobs_sampler=logprobs.to(device),
    )


def select_rows(batch: Batch, rows: Tensor) -> Batch:
    """The given rows, trimmed to their own longest response."""
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
    """Row indices of each optimizer step: whole groups, dealt in random order."""
    order = torch.randperm(len(batch.prompts), generator=generator)
    group_ids = batch.group_ids.cpu()
    return [torch.isin(group_ids, part).nonzero().flatten() for part in order.split(groups_each)]


def plan_micro_batches(batch: Batch, rows: Tensor, budget: int, *, whole_groups: bool, sort: bool = True) -> list[Tensor]:
    """Split `rows` so that each part costs at most `budget` tokens, padding counted and each group's prompt once.

    A unit is a group (`whole_groups`) or a row; a unit above the budget stands alone. `sort` puts units of like
    length together, so that little is padding.
    """
    lengths = batch.loss_mask.sum(dim=1).tolist()
    group_of = batch.group_ids.tolist()
    row_list = rows.tolist()
    if whole_groups:
        members: dict[int, list[int]] = {}
        for row in row_list:
            members.setdefault(group_of[row], []).append(row)
        units = list(members.values())
    else:
        units = [[row] for row in row_list]
    if sort:
        # Rows of one group stay neighbours, so that their prompt is computed once in most parts.
        longest_of_group: dict[int, int] = {}
        for row in row_list:
            longest_of_group[group_of[row]] = max(longest_of_group.get(group_of[row], 0), lengths[row])
        units.sort(key=lambda unit: (longest_of_group[group_of[unit[0]]], group_of[unit[0]]))
    parts: list[list[int]] = []
    groups: set[int] = set()
    longest_prompt = longest_response = 0
    for unit in units:
        group = group_of[unit[0]]
        prompt = max(longest_prompt, len(batch.prompts[group].token_ids))
        response = max(longest_response, *(lengths[row] for row in unit))
        rows_with_unit = len(unit) + (len(parts[-1]) if parts else 0)
        if not parts or len(groups | {group}) * prompt + rows_with_unit * response > budget:
            parts.append([])
            groups = set()
            prompt, response = len(batch.prompts[group].token_ids), max(lengths[row] for row in unit)
        parts[-1].extend(unit)
        groups.add(group)
        longest_prompt, longest_response = prompt, response
    return [torch.tensor(part) for part in parts]


def largest_group_tokens(batch: Batch, rows: Tensor) -> int:
    """Tokens of the most expensive whole group among `rows`: its prompt once, its responses padded."""
    lengths = batch.loss_mask.sum(dim=1)
    return max(
        (
            len(batch.prompts[group].token_ids) + int(own.sum()) * int(lengths[rows][own].max())
            for group in batch.group_ids[rows].unique().tolist()
            if (own := batch.group_ids[rows] == group).any()
        ),
        default=0,
    )
