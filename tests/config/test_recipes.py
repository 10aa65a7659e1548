from pathlib import Path

import pytest

from realrl.config import flatten, load_config
from realrl.data.datasets import NAMED
from realrl.data.tasks import TASKS
from realrl.rewards import list_verifiers

RECIPES = Path(__file__).parents[2] / "recipes"
PAPER_MODELS = {
    "1.5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", 2e-6, 1400),
    "7b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", 1e-6, 1000),
}
PAPER_EVAL = ("aime24", "aime25", "math500", "amc22_23", "minerva_deepscaler", "olympiadbench")
PAPER_SUFFIX = "\nLet's think step by step and output the final answer within \\boxed{}."
PAPER_DATA = {"deepscaler": "deepscaler", "dapo17k": "dapo_math_17k"}
PAPER_OBJECTIVES = {
    "real": {"tau": 0.5, "anchor": True, "degenerate_groups": "skip", "kl": ("none", 0.0)},
    "grpo": {"epsilon": 0.2, "clip": "one_sided", "kl": ("ref", 0.001)},
    "dapo": {"epsilon_low": 0.2, "epsilon_high": 0.28, "kl": ("none", 0.0)},
    "gspo": {"epsilon_low": 3e-4, "epsilon_high": 4e-4, "kl": ("none", 0.0)},
    "trpa": {"beta": 0.1, "anisotropy": 2.5, "kl": ("old", 0.001)},
}


# recipes/study holds sweeps (tests/sweep/test_sweep.py), recipes/paper/base parts of recipes.
@pytest.mark.parametrize(
    "path", [*sorted(RECIPES.glob("*.toml")), *sorted(RECIPES.glob("paper/*.toml"))], ids=lambda path: path.stem
)
def test_every_recipe_parses_and_names_things_that_exist(path):
    config = load_config(path)
    assert path.read_text().startswith("# ")
    for name in (config.data.train, *config.data.eval):
        assert name in TASKS or name in NAMED
    assert config.reward.type in list_verifiers()


@pytest.mark.parametrize("size", PAPER_MODELS)
@pytest.mark.parametrize("data", PAPER_DATA)
@pytest.mark.parametrize("objective", PAPER_OBJECTIVES)
def test_the_paper_s_hyper_parameters(size, data, objective):
    config = load_config(RECIPES / "paper" / f"{objective}_{size}_{data}.toml")
    model, rate, steps = PAPER_MODELS[size]
    assert (config.model.path, config.optim.lr, config.train.steps) == (model, rate, steps)
    assert (config.data.train, config.data.eval, config.data.prompt_suffix) == (PAPER_DATA[data], PAPER_EVAL, PAPER_SUFFIX)
    assert config.reward.type == "math"
    assert config.optim.weight_decay == 0.01
    assert (config.train.prompts_per_step, config.train.mini_batch_prompts, config.updates_per_step) == (128, 32, 4)
    sampling = config.sampling
    assert (sampling.group_size, sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (8, 0.6, 1.0, 8192)
    assert config.eval.samples == 16
    expected = dict(PAPER_OBJECTIVES[objective])
    target, coef = expected.pop("kl")
    assert (config.objective.type, config.objective.kl.target, config.objective.kl.coef) == (objective, target, coef)
    assert config.objective.kl.estimator == "k3"
    for key, value in expected.items():
        assert getattr(config.objective, key) == value


def test_the_paper_s_recipes_differ_only_in_what_each_names():
    recipes = [flatten(load_config(path).model_dump()) for path in sorted(RECIPES.glob("paper/*.toml"))]
    assert len(recipes) == len(PAPER_MODELS) * len(PAPER_DATA) * len(PAPER_OBJECTIVES)
    keys = {key for recipe in recipes for key in recipe}
    differing = {key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)}
    assert {key for key in differing if not key.startswith("objective.")} == {
        "run.dir",
        "model.path",
        "data.train",
        "train.steps",
        "optim.lr",
    }
