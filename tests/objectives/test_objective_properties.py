"""Properties of the objectives that hold for any group layout."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realrl.objectives import Groups, LossInputs, ScoreObjective, build_objective
from realrl.objectives.exact import fresh_scores

OBJECTIVES = [
    {"type": "real"},
    {"type": "real", "degenerate_groups": "use"},
    {"type": "real", "anchor": False},
    {"type": "bce"},
    {"type": "bce", "reduction": "mean"},
    {"type": "grpo"},
    {"type": "grpo", "clip": "bidirectional"},
    {"type": "dapo"},
    {"type": "gspo"},
    {"type": "trpa"},
    {"type": "disco"},
    {"type": "disco", "beta": 0},
    {"type": "disco", "score": "Lratio", "negatives": "mean"},
    {"type": "dr_grpo"},
    {"type": "cispo"},
    {"type": "sapo"},
    {"type": "gmpo"},
    {"type": "pacs"},
    {"type": "nft"},
    {"type": "nft", "question_weight": "grpo"},
]
# Losses that are a sum over the groups of the mini-batch.
BY_GROUP = [config for config in OBJECTIVES if build_objective(config).sums_over_groups]


@st.composite
def layouts(draw):
    """Ragged groups in any order, with rewards and a seed for the log-probabilities."""
    group_ids = draw(st.lists(st.integers(0, 4), min_size=1, max_size=12))
    rewards = draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(group_ids), max_size=len(group_ids)))
    return group_ids, rewards, draw(st.integers(0, 2**31))


def make(layout, spread=1.0) -> LossInputs:
    group_ids, rewards, seed = layout
    rng = torch.Generator().manual_seed(seed)
    count, width = len(group_ids), 4
    lengths = torch.randint(1, width + 1, (count,), generator=rng)
    levels = torch.where(torch.tensor(rewards) == 1, 2, torch.randint(0, 2, (count,), generator=rng))

    def draw():
        return -spread * torch.rand(count, width, generator=rng, dtype=torch.float64)

    return LossInputs(
        logprobs_policy=draw().requires_grad_(True),
        logprobs_old=draw(),
        logprobs_ref=draw(),
        loss_mask=torch.arange(width)[None] < lengths[:, None],
        rewards=torch.tensor(rewards, dtype=torch.float64),
        group_ids=torch.tensor(group_ids),
        levels=levels,
    )


def rows_of(inputs: LossInputs, rows) -> LossInputs:
    return LossInputs(
        **{
            name: getattr(inputs, name)[rows]
            for name in (
                "logprobs_policy",
                "logprobs_old",
                "logprobs_ref",
                "loss_mask",
                "rewards",
                "group_ids",
                "levels",
            )
        }
    )


def groups_of(rewards, group_ids, dtype=torch.float64) -> Groups:
    return Groups(torch.tensor(rewards, dtype=dtype), torch.tensor(group_ids), torch.ones(len(rewards), dtype=torch.long))


def gradient(loss, inputs):
    return torch.autograd.grad(loss, inputs.logprobs_policy)[0]


@pytest.mark.parametrize("config", OBJECTIVES, ids=str)
@given(layout=layouts(), data=st.data())
@settings(max_examples=25, deadline=None)
def test_order_of_rows_does_not_matter(config, layout, data):
    inputs = make(layout)
    order = data.draw(st.permutations(range(len(layout[0]))))
    objective = build_objective(config)
    assert objective.evaluate(rows_of(inputs, list(order))).loss.item() == pytest.approx(
        objective.evaluate(inputs).loss.item(), abs=1e-12
    )


@pytest.mark.parametrize("config", OBJECTIVES, ids=str)
@given(layout=layouts())
@settings(max_examples=25, deadline=None)
def test_a_duplicate_of_the_batch_leaves_the_loss(config, layout):
    inputs = make(layout)
    twice = rows_of(inputs, list(range(len(layout[0]))) * 2)
    shifted = torch.cat([inputs.group_ids, inputs.group_ids + 100])
    twice = replace(twice, group_ids=shifted)
    objective = build_objective(config)
    assert objective.evaluate(twice).loss.item() == pytest.approx(objective.evaluate(inputs).loss.item(), abs=1e-12)


@pytest.mark.parametrize("config", BY_GROUP, ids=str)
@given(layout=layouts())
@settings(max_examples=25, deadline=None)
def test_parts_of_whole_groups_add_up(config, layout):
    inputs = make(layout)
    objective, whole = build_objective(config), inputs.groups
    parts = [
        objective.evaluate(rows_of(inputs, (inputs.group_ids == group).nonzero().flatten()), whole).loss
        for group in set(layout[0])
    ]
    torch.testing.assert_close(
        gradient(sum(parts), inputs), gradient(objective.evaluate(inputs).loss, inputs), atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize("config", OBJECTIVES, ids=str)
@given(layout=layouts())
@settings(max_examples=25, deadline=None)
def test_rows_alone_have_the_gradient_of_the_whole(config, layout):
    """Two-pass for score objectives, advantages known for additive ones: any split of rows, here one by one."""
    inputs = make(layout)
    objective, whole = build_objective(config), inputs.groups
    if isinstance(objective, ScoreObjective):
        weights = objective.weights(objective.scores(inputs), whole)
    else:
        weights = objective.advantages(whole)
    losses = []
    for row in range(len(layout[0])):
        one = rows_of(inputs, [row])
        if isinstance(objective, ScoreObjective):
            losses.append((weights[[row]] * objective.scores(one)).sum() + objective.penalty(one, whole))
        else:
            losses.append(objective.additive_loss(one, whole, weights[[row]]))
    torch.testing.assert_close(
        gradient(sum(losses), inputs), gradient(objective.evaluate(inputs).loss, inputs), atol=1e-12, rtol=1e-9
    )


@pytest.mark.parametrize("config", OBJECTIVES, ids=str)
@given(layout=layouts())
@settings(max_examples=25, deadline=None)
def test_rows_said_to_carry_no_gradient_have_none(config, layout):
    inputs = make(layout)
    objective = build_objective({**config, "kl": {"target": "none"}})
    carries = objective.carries_gradient(inputs.groups)
    assert not gradient(objective.evaluate(inputs).loss, inputs)[~carries].any()


def closed_form_weights(scores, rewards, group_ids, tau):
    """Eq. 9 and 10 (20–24), before the mean over groups, in plain numbers."""
    weights = []
    for k, group in enumerate(group_ids):
        others = [i for i, g in enumerate(group_ids) if g == group and i != k and rewards[i] == rewards[k]]
        sign = -1 if rewards[k] == 1 else 1
        c = 1 + sum(math.exp(sign * scores[i] / tau) for i in others)
        weights.append(sign / tau / (1 + c * math.exp(-sign * scores[k] / tau)))
    return weights


@given(layout=layouts(), tau=st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=100, deadline=None)
def test_weights_are_the_closed_form_and_bounded(layout, tau):
    group_ids, rewards, seed = layout
    scores = torch.randn(len(rewards), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    objective = build_objective({"type": "real", "tau": tau, "degenerate_groups": "use"})
    # The mean over groups is left out.
    weights = objective.weights(scores, groups_of(rewards, group_ids)) * len(set(group_ids))
    expected = closed_form_weights(scores.tolist(), rewards, group_ids, tau)
    assert weights.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert weights.abs().max() <= 1 / tau


@pytest.mark.parametrize("right", [True, False])
def test_weight_magnitude_is_monotonic(right):
    objective = build_objective({"type": "real"})
    groups = groups_of([1, 1, 0, 0], [0] * 4)
    row = 0 if right else 2
    sizes = []
    for value in torch.linspace(-3, 3, 41, dtype=torch.float64):
        scores = torch.zeros(4, dtype=torch.float64)
        scores[row] = value
        sizes.append(objective.weights(scores, groups)[row].abs().item())
    assert sizes == sorted(sizes, reverse=right)


def test_first_step_weights():
    """At s̄ = 0: (1/τ)/(1 + n) for each of n rollouts of the same label."""
    objective = build_objective({"type": "real"})
    weights = objective.weights(torch.zeros(4), groups_of([1, 0, 0, 0], [0] * 4))
    assert weights.tolist() == pytest.approx([-2 / 2, 2 / 4, 2 / 4, 2 / 4])


@given(layout=layouts(), shift=st.floats(-3, 3))
@settings(max_examples=50, deadline=None)
def test_only_the_anchor_sees_a_common_shift(layout, shift):
    group_ids, rewards, seed = layout
    scores = torch.randn(len(rewards), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    groups = groups_of(rewards, group_ids)
    free = build_objective({"type": "real", "anchor": False})
    moved, still = (free.loss_from_scores(values, groups, groups) for values in (scores + shift, scores))
    assert moved.item() == pytest.approx(still.item(), abs=1e-9)


def test_the_anchored_loss_sees_a_common_shift():
    objective = build_objective({"type": "real"})
    groups = groups_of([1, 1, 0], [0] * 3)
    scores = torch.tensor([0.1, -0.2, 0.3])
    moved, still = (objective.loss_from_scores(values, groups, groups) for values in (scores + 1, scores))
    assert abs(moved - still) > 0.01


@pytest.mark.parametrize("config", [c for c in OBJECTIVES if c["type"] in ("real", "bce")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_extreme_scores(config, dtype):
    objective = build_objective(config)
    scores = torch.tensor([5e3, -5e3, 5e3, -5e3], dtype=dtype, requires_grad=True)
    groups = groups_of([1, 1, 0, 0], [0] * 4, dtype)
    loss = objective.loss_from_scores(scores, groups, groups)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("config", OBJECTIVES, ids=str)
@pytest.mark.parametrize("layout", [([3], [1.0], 0), ([3], [0.0], 0), ([1, 2, 2], [1.0, 0.0, 1.0], 1), ([0] * 5, [1.0] * 5, 2)])
def test_smallest_layouts_are_finite_and_differentiable(config, layout):
    inputs = make(layout)
    loss = build_objective(config).evaluate(inputs).loss
    assert torch.isfinite(gradient(loss, inputs)).all() and torch.isfinite(loss)


@pytest.mark.parametrize("config", [c for c in OBJECTIVES if c["type"] in ("real", "bce", "trpa", "disco", "pacs")], ids=str)
def test_gradcheck(config):
    inputs = make(([0, 0, 0, 1, 1, 2], [1.0, 0.0, 1.0, 0.0, 1.0, 1.0], 5))
    objective = build_objective(config)

    def loss(policy):
        return objective.evaluate(replace(inputs, logprobs_policy=policy)).loss

    assert torch.autograd.gradcheck(loss, inputs.logprobs_policy)


@pytest.mark.parametrize("config", OBJECTIVES, ids=str)
@given(layout=layouts())
@settings(max_examples=25, deadline=None)
def test_scores_known_without_a_pass_are_right(config, layout):
    objective = build_objective(config)
    if not isinstance(objective, ScoreObjective) or not objective.zero_scores_when_fresh:
        return
    inputs = make(layout)
    fresh = replace(inputs, logprobs_old=inputs.logprobs_policy.detach())
    assert torch.equal(objective.scores(fresh), fresh_scores(objective, inputs.groups))


def test_disco_s_trust_region_couples_all_groups():
    """The control of BY_GROUP: the squared hinge of the whole is not the sum of those of its groups."""
    inputs = make(([0, 1, 0, 1], [1.0, 0.0, 0.0, 1.0], 1))
    moved = replace(inputs, logprobs_old=(inputs.logprobs_policy + 0.1).detach())
    objective, whole = build_objective({"type": "disco", "delta": 0, "beta": 2}), moved.groups
    rows = [torch.tensor([0, 2]), torch.tensor([1, 3])]
    parts = sum(objective.evaluate(rows_of(moved, one), whole).loss for one in rows)
    # KL is 0.1 for every token, so each group adds its share of the tokens.
    shares = [moved.loss_mask[one].sum() / whole.num_tokens for one in rows]
    missing = 0.1**2 - sum((0.1 * share) ** 2 for share in shares)
    assert (objective.evaluate(moved).loss - parts).item() == pytest.approx(missing.item(), rel=1e-6)


@pytest.mark.parametrize(("question_weight", "twin"), [("dr_grpo", "dr_grpo"), ("grpo", "grpo")])
def test_nft_on_the_sampling_policy_has_the_gradient_of_its_twin(question_weight, twin):
    """Propositions 4.1, 4.2: A = r − r̂, divided by the population's standard deviation for GRPO's."""
    inputs = make(([0] * 6 + [1] * 6 + [2] * 6, [1.0, 0, 0, 0, 0, 1] + [1.0, 1, 1, 1, 1, 0] + [1.0] * 6, 4))
    fresh = replace(inputs, logprobs_old=inputs.logprobs_policy.detach())
    objective = build_objective({"type": "nft", "question_weight": question_weight})
    rate = torch.tensor([2 / 6] * 6 + [5 / 6] * 6 + [1.0] * 6, dtype=torch.float64)
    advantages = inputs.rewards - rate
    if twin == "grpo":
        advantages = torch.where(rate < 1, advantages / (rate * (1 - rate)).sqrt(), 0)
    expected = -torch.where(inputs.loss_mask, advantages[:, None], 0) / inputs.loss_mask.sum()
    torch.testing.assert_close(gradient(objective.evaluate(fresh).loss, fresh), expected)
