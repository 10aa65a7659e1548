import pytest
import torch

from realrl.objectives import Groups, LossInputs, build_objective
from realrl.objectives.trpa import count_preference_pairs, preference_pairs


def inputs(**changes):
    fields = {
        "logprobs_policy": torch.zeros(2, 3),
        "logprobs_old": torch.zeros(2, 3),
        "loss_mask": torch.ones(2, 3, dtype=torch.bool),
        "rewards": torch.tensor([1.0, 0.0]),
        "group_ids": torch.tensor([0, 0]),
    }
    return LossInputs(**{**fields, **changes})


@pytest.mark.parametrize("name", ["real", "bce", "trpa", "disco", "pacs", "nft"])
def test_rewards_that_are_no_labels_are_refused(name):
    with pytest.raises(ValueError, match=r"-1.0.*0 or 1.*rewards > 0.5"):
        build_objective({"type": name}).evaluate(inputs(rewards=torch.tensor([1.0, -1.0]), logprobs_ref=torch.zeros(2, 3)))


@pytest.mark.parametrize("reward", [0.1, 0.7, 0.9])
@pytest.mark.parametrize("size", [1, 3, 7, 12])
def test_a_group_of_equal_rewards_has_no_advantage(reward, size):
    """As with reward.format_weight, where a wrong answer in a box has 0.1, and GRPO's KL penalty, which computes every row."""
    group_ids = torch.zeros(size, dtype=torch.long)
    advantages = build_objective({"type": "grpo"}).advantages(
        Groups(torch.full((size,), reward), group_ids, torch.ones_like(group_ids))
    )
    assert advantages.tolist() == [0.0] * size


def test_advantage_objectives_take_any_finite_reward():
    loss = build_objective({"type": "dapo"}).evaluate(inputs(rewards=torch.tensor([1.0, -1.0]))).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_mask": torch.tensor([[True] * 3, [False] * 3])}, "rollout 1 has no response token"),
        ({"logprobs_old": torch.zeros(2, 4)}, r"logprobs_old has shape \(2, 4\)"),
        ({"rewards": torch.tensor([1.0, float("nan")])}, "NaN"),
        ({"rewards": torch.ones(3)}, "one value per rollout"),
        ({"loss_mask": torch.ones(2, 3)}, "must be bool"),
        ({"group_ids": torch.zeros(2)}, "int64"),
    ],
)
def test_bad_inputs_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        inputs(**changes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "reel"}, "did you mean 'real'"),
        ({"type": "real", "taw": 1}, "did you mean 'tau'"),
        ({"type": "real", "tau": 0}, "tau = 0"),
        ({}, "unknown objective type None"),
    ],
)
def test_bad_configs_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        build_objective(config)


def test_missing_reference_is_named():
    with pytest.raises(ValueError, match="logprobs_ref"):
        build_objective({"type": "grpo"}).evaluate(inputs())


def test_trpa_without_a_pair_is_zero_and_counted():
    out = build_objective({"type": "trpa"}).evaluate(inputs(rewards=torch.ones(2), logprobs_ref=torch.zeros(2, 3)))
    assert out.loss.item() == 0 and out.metrics["groups/degenerate"] == 1


def test_pairs_are_counted_as_they_are_found():
    """By hand: levels 2, 1, 1, 0 make 2 + 1 + 2 pairs, one level none; and 100,000 rollouts without a matrix of 10^10 cells."""
    groups = torch.tensor([7, 3, 7, 7, 3, 7, 3])
    levels = torch.tensor([2, 1, 1, 1, 1, 0, 1])
    assert count_preference_pairs(levels, groups) == len(preference_pairs(levels, groups)[0]) == 5
    many = torch.arange(100_000)
    assert count_preference_pairs(many % 2, many // 8) == 100_000 // 8 * 16
