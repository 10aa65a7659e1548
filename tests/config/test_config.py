import re
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from realrl.config import SAMPLERS, Config, LoraSection, dump_config, load_config, parse_config
from realrl.config.table import _rows, fill
from realrl.errors import ConfigError
from realrl.objectives import list_objectives

PAGE = Path(__file__).parents[2] / "docs" / "recipe.md"
RECIPE = """
[model]
path = "smollm2-135m"
[data]
train = "largest_of_three"
[objective]
type = "real"
tau = 0.25
[train]
prompts_per_step = 8
mini_batch_prompts = 4
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_reads_values_and_defaults(recipe):
    config = load_config(recipe)
    assert config.objective.tau == 0.25
    assert config.updates_per_step == 2
    assert config.optim.weight_decay == 0.01


def test_overrides_are_toml_values_or_text(recipe):
    config = load_config(recipe, {"optim.lr": "1e-3", "run.dir": "runs/x", "objective.anchor": "false"})
    assert (config.optim.lr, config.run.dir, config.objective.anchor) == (1e-3, "runs/x", False)


@pytest.mark.parametrize("name", list_objectives())
def test_every_objective_by_override(recipe, name):
    """The recipe's tau belongs to its own objective and would be an unknown key of others."""
    config = load_config(recipe, {"objective.kl.coef": "0.5", "objective.kl.target": "ref", "objective.type": name})
    assert (config.objective.type, config.objective.kl.coef) == (name, 0.5)
    assert getattr(config.objective, "tau", None) == {"real": 0.25, "bce": 0.5, "disco": 10}.get(name)
    assert config == parse_config(tomllib.loads(dump_config(config)))


def test_an_objective_without_a_type_is_real(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('[model]\npath = "tiny-adder"\n[data]\ntrain = "column_addition"\n')
    plain, colder = (load_config(path, keys).objective for keys in ({}, {"objective.tau": "0.25"}))
    assert colder == plain.model_copy(update={"tau": 0.25})
    path.write_text(path.read_text() + "[objective]\ntau = 0.25\n")
    assert load_config(path, {"objective.type": "real"}).objective.tau == 0.25
    with pytest.raises(ConfigError, match=r"did you mean objective\.anchor"):
        load_config(path, {"objective.ancor": "false"})


def test_the_defaults_of_disco_follow_its_score(recipe):
    taus = [load_config(recipe, {"objective.type": "disco", "objective.score": s}).objective.tau for s in ("logL", "Lratio")]
    assert taus == [10, 1]


def test_a_loss_that_couples_all_groups_refuses_the_direct_route(recipe):
    route = {"objective.type": "disco", "train.gradient_route": "direct"}
    with pytest.raises(ConfigError, match="'direct' is not exact for objective.type = 'disco'"):
        load_config(recipe, route)
    assert load_config(recipe, route | {"objective.beta": "0"}).train.gradient_route == "direct"


def test_dump_round_trips(recipe, tmp_path):
    config = load_config(recipe)
    copy = tmp_path / "copy.toml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optim.learning_rate", "1", "unknown key optim.learning_rate"),
        ("optim.lrr", "1", "did you mean optim.lr"),
        ("objective.taw", "1", "did you mean objective.tau"),
        ("objective.type", "reall", "did you mean real"),
        ("trian.steps", "1", "did you mean train"),
        ("optim.lr", "-1", "optim.lr = -1"),
        ("train.mini_batch_prompts", "3", "does not divide train.prompts_per_step = 8"),
        ("model.path.x", "1", "model.path.x"),
        ("optim.betas", "[0.9, 1.0]", "optim.betas.1 = 1.0"),
        ("data.columns.anwer", "solution", "unknown column 'anwer'"),
        ("data.eval", "held_out.jsonl", "data.eval = 'held_out.jsonl': a list is needed, such as ['held_out.jsonl']"),
        ("data.filter.source", "aime", "data.filter.source = 'aime': a list is needed, such as ['aime']"),
        ("train", "3", "train = 3: a table is needed"),
        ("sampling.engine", "nonsense", "toml: unknown sampling.engine 'nonsense'; known: hf, vllm, or a sampler class as"),
        ("sampling.engine", "vlm", "did you mean vllm?"),
        ("objective.kl.coef", "0.5", "coef = 0.5 has no effect without a target"),
        ("objective.kl.target", "ref", "target = 'ref' has no effect without a coef"),
    ],
)
def test_errors_name_the_key_and_the_remedy(recipe, key, value, message):
    with pytest.raises(ConfigError) as error:
        load_config(recipe, {key: value})
    assert message.split(".x")[0] in str(error.value)


def test_a_sampler_of_ones_own_and_a_registered_one_are_taken_without_an_import(recipe, monkeypatch):
    assert load_config(recipe, {"sampling.engine": "no_such_module:Sampler"}).sampling.engine == "no_such_module:Sampler"
    monkeypatch.setattr(SAMPLERS, "_known", dict(SAMPLERS._known))
    SAMPLERS.register("mine", dict)
    assert load_config(recipe, {"sampling.engine": "mine"}).sampling.engine == "mine"


def test_missing_recipe_and_broken_toml(tmp_path, recipe):
    with pytest.raises(ConfigError, match=r"did you mean .*recipe\.toml"):
        load_config(tmp_path / "recipes.toml")
    recipe.write_text("[model\npath=1")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(recipe)


def test_missing_section_is_named():
    with pytest.raises(ConfigError, match="missing key model"):
        parse_config({"data": {"train": "x"}})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1 / 3, 2 / 3, 1, 1]), ("linear", [1 / 3, 2 / 3, 1, 0.5]), ("cosine", [1 / 3, 2 / 3, 1, 0.5])],
)
def test_learning_rate_schedule(recipe, schedule, expected):
    optim = load_config(recipe, {"optim.schedule": schedule, "optim.warmup_steps": "2"}).optim
    assert [optim.factor(step, 4) for step in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        # A text that pydantic would read as a number that is none.
        ("optim.lr", "'inf'", "finite number"),
        ("sampling.temperature", "'inf'", "finite number"),
        ("objective.tau", "'nan'", "greater than 0|finite number"),
        ("objective.kl.coef", "'inf'", "finite number"),
        ("data.filter", "{ level = { min = 'nan' } }", "finite number"),
        ("optim.betas", "[1.5, 0.9]", "less than 1"),
        # Logits overflow, and what is drawn from them is noise.
        ("sampling.temperature", "1e-30", "greater than or equal to 0.01"),
        # Bytes of another encoding, as Python has them from a command line.
        ("data.system_prompt", "caf\udce9", "is not text: it holds bytes that are not UTF-8"),
        # A slip of the keyboard, before it fills the machine.
        ("sampling.max_new_tokens", "8192819281928192", "less than or equal to 1048576"),
        ("sampling.group_size", "1_000_000_000", "less than or equal to 1048576"),
        ("eval.samples", "1_000_000_000", "less than or equal to 1048576"),
        ("train", "{ prompts_per_step = 1_000_000, mini_batch_prompts = 1_000_000 }", "more rollouts than the 16777216"),
        ("train.prompts_per_step", "100_000_000_000_000_001", "less than or equal to 1048576"),
        # The column would have been looked for under its usual names, and another one taken for the gold.
        ("data.columns", "{ gold = 'final' }", "unknown column 'gold'; the columns are problem, answer and id"),
    ],
)
def test_values_that_no_run_can_have_are_refused(recipe, key, value, said):
    with pytest.raises(ConfigError, match=said):
        load_config(recipe, {key: value, "sampling.group_size": "1000"} | {key: value})


def test_the_tables_of_the_page_are_made_from_the_descriptions():
    page = PAGE.read_text()
    assert fill(page) == page, "run: python -m realrl.config.table docs/recipe.md"


def test_a_section_s_own_default_goes_before_its_class_s():
    """GRPO's KL penalty has another default than the section of every objective."""

    class Inner(BaseModel):
        coef: float = Field(default=0.0, description="its weight | scale")

    class Outer(BaseModel):
        plain: Inner = Inner()
        own: Inner = Inner(coef=1e-3)

    assert list(_rows(Outer, "objective", {})) == [
        ("`objective.plain.coef`", "0.0", "its weight \\| scale"),
        ("`objective.own.coef`", "0.001", "its weight \\| scale"),
    ]


def test_every_key_of_a_recipe_has_a_row_in_the_docs_with_its_default():
    documented = {}
    for key, default in re.findall(r"^\| `(\w+\.[^`]+)` \| (.+?) \|", PAGE.read_text(), re.MULTILINE):
        documented[key] = None if default in ("required", "absent") else tomllib.loads(f"value = {default}")["value"]
    sections = {name: field.annotation for name, field in Config.model_fields.items() if name != "objective"}
    sections["model.lora"] = LoraSection
    wanted = {}
    for section, model in sections.items():
        for name, field in model.model_fields.items():
            value = None if field.is_required() else field.default
            wanted[f"{section}.{name}"] = list(value) if isinstance(value, tuple) else value
    assert {key: value for key, value in documented.items() if "." in key} == wanted


def test_the_layout_of_recipes_of_earlier_versions_has_another_name():
    document = {"model": {"path": "tiny-adder"}, "data": {"train": "addition"}}
    assert parse_config(document | {"train": {"layout": "shared"}}).train.layout == "tree"
    with pytest.raises(ConfigError, match="'auto', 'tree', 'packed' or 'padded'"):
        parse_config(document | {"train": {"layout": "mixed"}})
