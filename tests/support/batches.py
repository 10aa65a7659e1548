"""A batch as `realrl train` holds it, of rollouts that another engine sampled."""

import torch

from realrl.types import Batch, Problem, Prompt


def batch_of(prompts, responses, groups, rewards) -> Batch:
    """Of N rollouts `responses` (token ids), `groups` (indices) and `rewards` (0 or 1); `prompts` (token ids) by group."""
    width = max(map(len, responses))
    rewards = torch.tensor(rewards)
    return Batch(
        prompts=[Prompt(Problem(str(group), "", ""), "", tuple(ids)) for group, ids in enumerate(prompts)],
        response_ids=torch.tensor([ids + [0] * (width - len(ids)) for ids in responses]),
        loss_mask=torch.arange(width) < torch.tensor([len(ids) for ids in responses])[:, None],
        group_ids=torch.tensor(groups),
        rewards=rewards,
        levels=1 + (rewards == 1).long(),
        logprobs_sampler=torch.zeros(len(responses), width),
    )


def recorded_batch(step) -> Batch:
    """The batch of an optimizer step as verl's run records it (tests/with_verl): `prompts` and `groups` for each rollout."""
    prompts = dict(zip(step["groups"], step["prompts"], strict=True))
    return batch_of([prompts[group] for group in range(len(prompts))], step["responses"], step["groups"], step["rewards"])
