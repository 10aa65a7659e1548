"""`base = "…"`: a recipe over another one."""

import pytest

from realrl.config import dump_config, load_config
from realrl.errors import ConfigError
from realrl.sweep import load_sweep

BASE = """
[model]
path = "tiny-adder"
[data]
train = "column_addition"
eval = ["column_addition", "add_or_multiply"]
task = { digits = 2 }
[objective]
type = "real"
tau = 0.25
[optim]
lr = 1e-3
weight_decay = 0.0
"""


@pytest.fixture
def write(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base.toml").write_text(BASE)

    def write(text: str, name: str = "recipe.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_the_recipe_s_keys_go_over_the_base_s(write, monkeypatch):
    """Tables key by key, lists whole; the path is relative to the recipe, not to the current folder."""
    recipe = write('base = "shared/base.toml"\noptim.lr = 2e-3\n[data]\neval = ["largest_of_three"]\ntask = { hard = 1 }\n')
    monkeypatch.chdir("/")
    config = load_config(recipe, {"optim.weight_decay": "0.5"})
    assert (config.optim.lr, config.optim.weight_decay) == (2e-3, 0.5)
    assert (config.data.train, config.data.eval) == ("column_addition", ("largest_of_three",))
    assert config.data.task == {"digits": 2, "hard": 1}
    assert config.objective.tau == 0.25


def test_a_base_has_a_base_and_the_saved_recipe_has_none(write):
    middle = write('base = "base.toml"\ntrain.steps = 7\noptim.lr = 3e-3\n', "shared/middle.toml")
    config = load_config(write('base = "shared/middle.toml"\noptim.lr = 4e-3\n'))
    assert (config.train.steps, config.optim.lr, config.optim.weight_decay) == (7, 4e-3, 0.0)
    saved = write(dump_config(config), "config.toml")
    middle.unlink()
    assert load_config(saved) == config


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("tau = 0.75", {"type": "real", "tau": 0.75, "anchor": True}),
        ('type = "real"', {"type": "real", "tau": 0.25, "anchor": True}),
        # Another objective: its own default of tau, and none of REAL's keys.
        ('type = "bce"', {"type": "bce", "tau": 0.5, "reduction": "sum"}),
    ],
)
def test_another_objective_starts_from_its_defaults(write, objective, expected):
    config = load_config(write(f'base = "shared/base.toml"\n[objective]\n{objective}\n'))
    assert expected.items() <= config.objective.model_dump().items()


def test_values_of_any_type_are_overrides(write):
    config = load_config(
        write('base = "shared/base.toml"\n'),
        {"optim.lr": 1e-4, "data.eval": ("column_addition",), "train.shuffle_rollouts": True, "objective.type": "bce"},
    )
    assert (config.optim.lr, config.data.eval, config.train.shuffle_rollouts) == (1e-4, ("column_addition",), True)
    assert config.objective.type == "bce"


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ('"shared/bace.toml"', r"no recipe at .*bace\.toml \(the base of .*recipe\.toml\); did you mean .*base\.toml\?"),
        ('"recipe.toml"', r"the bases form a cycle: .*recipe\.toml → .*recipe\.toml; remove one base"),
        ('"shared/circle.toml"', r"the bases form a cycle: .*recipe\.toml → .*circle\.toml → .*recipe\.toml; remove one"),
        ('""', r"base = '' must be the path of a recipe"),
        ('["a.toml"]', r"base = \['a.toml'\] must be the path of a recipe"),
        (f'"{"x" * 300}"', "cannot open the recipe .*the base of"),
        ('"shared/broken.toml"', r"broken\.toml is not valid TOML"),
        # The key stands in the base, and the message names both files.
        (
            '"shared/wrong.toml"',
            r"recipe\.toml \(base: .*wrong\.toml, .*base\.toml\): unknown key optim\.lrr; did you mean optim\.lr",
        ),
    ],
    ids=lambda value: value[:24],
)
def test_bases_that_cannot_be_used(write, base, message):
    write('base = "../recipe.toml"\n', "shared/circle.toml")
    write("[optim", "shared/broken.toml")
    write('base = "base.toml"\noptim.lrr = 1\n', "shared/wrong.toml")
    with pytest.raises(ConfigError, match=message):
        load_config(write(f"base = {base}\n"))


def test_a_sweep_s_base_may_have_a_base(write, tmp_path):
    write('base = "shared/base.toml"\noptim.lr = 5e-3\n')
    plan = load_sweep(write(f'base = "recipe.toml"\ndir = "{tmp_path}/runs"\n', "sweep.toml"))
    (run,) = plan.final({})
    assert (run.config.optim.lr, run.config.objective.tau) == (5e-3, 0.25)
