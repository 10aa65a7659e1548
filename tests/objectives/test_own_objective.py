"""Objectives of one's own: by class, in a recipe, and the check that finds what is wrong with them."""

import sys

import own_objective
import pytest
import torch

import realrl
from realrl.config import dump_config, load_config, parse_config
from realrl.errors import ConfigError
from realrl.objectives import build_objective, list_objectives
from realrl.testing import check_exact


@pytest.fixture
def my_losses(tmp_path, monkeypatch):
    own_objective.write_module(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield own_objective.NAME
    sys.modules.pop("my_losses", None)


@pytest.mark.parametrize("name", list_objectives())
def test_every_built_in_objective_is_exact(name):
    check_exact(build_objective({"type": name}), slope=name not in ("cispo", "nft"))


def test_an_own_objective_is_exact_and_a_recipe_takes_it(my_losses, tmp_path):
    margin = build_objective({"type": my_losses, "margin": 0.3})
    check_exact(margin)
    policy, old = torch.tensor([[0.2], [0.1]]), torch.zeros(2, 1)
    loss = margin(policy, old, torch.ones(2, 1, dtype=torch.bool), [1, 0], [0, 0])
    assert float(loss) == pytest.approx(float(torch.nn.functional.softplus(torch.tensor(0.3 - 0.1))))
    document = {"model": {"path": "tiny-adder"}, "data": {"train": "addition"}, "objective": {"type": my_losses, "margin": 0.3}}
    config = parse_config(document)
    assert config.objective == margin
    (tmp_path / "again.toml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.toml") == config


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"type": "my_losses:Margin", "margin": -1}, "margin = -1"),
        ({"type": "my_losses:Margin", "margn": 1}, "no key 'margn'; did you mean 'margin'"),
        ({"type": "my_losses:Nothing"}, "'my_losses:Nothing' cannot be loaded: AttributeError"),
        ({"type": "no_such_module:Margin"}, "cannot be loaded: ModuleNotFoundError"),
        ({"type": "math:pi"}, "must be a subclass of realrl.ScoreObjective"),
        ({"type": "reel"}, "did you mean real"),
    ],
)
def test_what_is_no_objective_is_refused_by_the_recipe(my_losses, objective, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"model": {"path": "tiny-adder"}, "data": {"train": "addition"}, "objective": objective})


class ScoresThatAreNotZero(realrl.ScoreObjective):
    """Wrong: says that fresh scores are 0, and they are mean log-probabilities."""

    type: str = "own"

    @property
    def zero_scores_when_fresh(self):
        return True

    def scores(self, inputs):
        return torch.where(inputs.loss_mask, inputs.logprobs_policy, 0).sum(dim=1)

    def loss_from_scores(self, scores_N, groups, whole):
        return torch.where(groups.rewards == 1, -scores_N, scores_N).exp().sum() / whole.count


class MeanOverRows(realrl.AdditiveObjective):
    """Wrong: a mean over the rows of the part."""

    type: str = "own"

    def surrogate(self, inputs, whole, advantages_N):
        return -(advantages_N * (inputs.logprobs_policy * inputs.loss_mask).sum(dim=1)).mean(), {}


@pytest.mark.parametrize(("objective", "what"), [(ScoresThatAreNotZero, "fresh"), (MeanOverRows, "split into")])
def test_the_check_finds_what_is_wrong(objective, what):
    with pytest.raises(AssertionError, match=what):
        check_exact(objective())


def test_the_value_of_a_plan_is_the_loss_and_wrong_rows_are_refused():
    torch.manual_seed(0)
    policy, old = -torch.rand(6, 4), -torch.rand(6, 4)
    mask = torch.tensor([[True] * 4] * 5 + [[True, False, False, False]])
    arguments = old, mask, [1, 0, 0, 1, 1, 0], [3, 3, 3, 8, 8, 8]
    real = realrl.Real(tau=0.5)
    plan = real.plan(*arguments, policy=policy)
    parts = [plan.loss(policy[rows], rows) for rows in ([5, 0], [1, 2], [4, 3])]
    assert float(sum(parts)) == pytest.approx(float(real(policy, *arguments)), rel=1e-6)
    # A narrow part may leave padding out, and nothing else.
    assert torch.isfinite(plan.loss(policy[[5], :1], [5]))
    for rows, given in (([0], policy[[0], :3]), ([0, 1], policy[[0]])):
        with pytest.raises(ValueError, match="a column for each of their response tokens"):
            plan.loss(given, rows)
    held = real.plan(old[:3], mask[:3], *arguments[2:], rows=[0, 1, 2], all_reduce=lambda values: values)
    with pytest.raises(ValueError, match="row 4 is not among the rows"):
        held.loss(policy[[4]], [4])
    with pytest.raises(ValueError, match="must pass rows="):
        real.plan(old[:3], mask[:3], *arguments[2:])
