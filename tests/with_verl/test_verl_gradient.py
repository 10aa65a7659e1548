"""The gradient that the driver hands to verl's workers, and their loss; needs no verl."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from realrl.errors import ConfigError
from realrl.integrations.verl.gradient import plan_mini_batches
from realrl.integrations.verl.loss import no_advantages_yet, policy_loss, refuse_other_trainers
from realrl.objectives import LossInputs, build_objective
from realrl.objectives.exact import token_gradient

OBJECTIVES = [
    {"type": "real"},
    {"type": "real", "anchor": False},
    {"type": "real", "kl": {"target": "old", "coef": 0.3}},
    {"type": "bce", "reduction": "mean"},
    {"type": "grpo"},
    {"type": "dapo"},
    {"type": "gspo"},
    {"type": "trpa"},
    {"type": "disco"},
    {"type": "pacs"},
    {"type": "sapo"},
]


def mini_batch(rewards=(1, 0, 0, 1, 0, 1, 1, 0, 1)):
    """Ragged groups of 4, 3 and 2 rollouts in mixed order."""
    rng = torch.Generator().manual_seed(1)
    count, width = len(rewards), 7
    lengths = torch.randint(1, width + 1, (count,), generator=rng)
    old = -2 * torch.rand(count, width, generator=rng)
    return LossInputs(
        logprobs_policy=old + 0.3 * torch.randn(count, width, generator=rng),
        logprobs_old=old,
        logprobs_ref=old + 0.1,
        loss_mask=torch.arange(width)[None] < lengths[:, None],
        rewards=torch.tensor(rewards, dtype=torch.float32),
        group_ids=torch.tensor([0, 1, 2, 0, 1, 0, 1, 2, 0][:count]),
    )


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 4, 9])
def test_workers_losses_add_up_to_the_objectives_gradient(objective, rows):
    built, inputs = build_objective(objective), mini_batch()
    gradient_NT, out = token_gradient(built, inputs)

    policy_NT = inputs.logprobs_policy.clone().requires_grad_(True)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    config = SimpleNamespace(global_batch_info={"dp_size": 2})
    for part in order.split(rows):
        loss, _ = policy_loss(
            old_log_prob=inputs.logprobs_old[part],
            log_prob=policy_NT[part],
            advantages=-gradient_NT[part],
            response_mask=inputs.loss_mask[part],
            config=config,
        )
        # Half of it: verl takes the mean over its two ranks.
        (loss / 2).backward()

    step = 1e-6
    direction = torch.randn(policy_NT.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    ahead, behind = (loss_at(built, inputs, inputs.logprobs_policy.double() + sign * step * direction) for sign in (1, -1))
    expected = (ahead - behind) / (2 * step)
    assert float((policy_NT.grad * direction).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert float(out.loss) == pytest.approx(loss_at(built, inputs, inputs.logprobs_policy.double()), rel=1e-6)
    assert not policy_NT.grad[~inputs.loss_mask].any()


def loss_at(objective, inputs, policy_NT):
    given = LossInputs(
        logprobs_policy=policy_NT,
        logprobs_old=inputs.logprobs_old.double(),
        logprobs_ref=inputs.logprobs_ref.double(),
        loss_mask=inputs.loss_mask,
        rewards=inputs.rewards.double(),
        group_ids=inputs.group_ids,
    )
    return float(objective.evaluate(given).loss)


def test_the_gain_of_a_pair_is_the_closed_form():
    """One right and one wrong rollout at s̄ = 0: ∓(1/τ)/(1 + 1), shared out over their tokens (Eq. 9, 10)."""
    zeros = torch.zeros(2, 4)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    inputs = LossInputs(zeros, zeros, mask, torch.tensor([1.0, 0.0]), torch.tensor([7, 7]))
    gradient_NT, _ = token_gradient(build_objective({"type": "real", "tau": 0.5}), inputs)
    assert torch.allclose(-gradient_NT, torch.tensor([[0.25] * 4, [-0.5, -0.5, 0.0, 0.0]]))


def test_a_batch_without_a_label_is_refused():
    with pytest.raises(ValueError, match="NaN or infinity"):
        mini_batch((1, 0, float("nan"), 1))
    with pytest.raises(ValueError, match=r"rewards hold \[0.5\].*needs 0 or 1"):
        token_gradient(build_objective({"type": "real"}), mini_batch((1, 0, 0.5, 1)))


def test_mini_batches_are_whole_groups_in_the_order_of_the_batch():
    uids = ["b", "a", "c", "a", "b", "c", "d", "e"]
    assert plan_mini_batches(uids, 2) == [[0, 4, 1, 3], [2, 5, 6], [7]]
    plans = [plan_mini_batches(uids, 2, np.random.default_rng([1, step])) for step in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    for plan in plans:
        assert sorted(row for rows in plan for row in rows) == list(range(8))
        homes = {uid: {number for number, rows in enumerate(plan) for row in rows if uids[row] == uid} for uid in uids}
        assert all(len(numbers) == 1 for numbers in homes.values())


def test_other_trainers_and_importance_weights_are_refused():
    with pytest.raises(ConfigError, match="trainer.v1.trainer_mode=real_sync"):
        refuse_other_trainers(token_level_rewards=torch.zeros(1, 1), response_mask=torch.ones(1, 1))
    ones = torch.ones(1, 1)
    with pytest.raises(ConfigError, match="rollout_is=null"):
        policy_loss(ones, ones, ones, ones, rollout_is_weights=ones)
    assert not no_advantages_yet(ones, ones)[0].any()
