"""The recipe: a TOML file becomes one frozen, typed `Config`. Each section of a recipe has a file of this package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError, model_validator

from realrl.config.checkpoint import CheckpointSection
from realrl.config.data import DataSection, Example, Keep, KeepRange
from realrl.config.eval import EvalSection
from realrl.config.faults import describe
from realrl.config.log import LogSection
from realrl.config.model import LoraSection, ModelSection
from realrl.config.optim import OptimSection
from realrl.config.reward import RewardSection
from realrl.config.run import RunSection
from realrl.config.sampling import MIN_TEMPERATURE, SAMPLERS, SamplingSection
from realrl.config.section import Section
from realrl.config.toml import check_values, flatten, read_recipe, read_toml, set_dotted, start_objective_over
from realrl.config.train import AlarmKind, TrainSection
from realrl.errors import ConfigError
from realrl.objectives import ObjectiveConfig, RealConfig

__all__ = [
    "MIN_TEMPERATURE",
    "SAMPLERS",
    "AlarmKind",
    "CheckpointSection",
    "Config",
    "DataSection",
    "EvalSection",
    "Example",
    "Keep",
    "KeepRange",
    "LogSection",
    "LoraSection",
    "ModelSection",
    "OptimSection",
    "RewardSection",
    "RunSection",
    "SamplingSection",
    "Section",
    "TrainSection",
    "dump_config",
    "flatten",
    "load_config",
    "parse_config",
    "read_toml",
]

_MAX_ROLLOUTS = 2**24
# The objective of a recipe that names none.
_OBJECTIVE = RealConfig().type


class Config(Section):
    """A whole recipe. Rules across sections are checked here; preflight checks rules that need the model or the data."""

    run: RunSection = RunSection()
    model: ModelSection
    data: DataSection
    reward: RewardSection = RewardSection()
    sampling: SamplingSection = SamplingSection()
    objective: ObjectiveConfig = RealConfig()
    train: TrainSection = TrainSection()
    optim: OptimSection = OptimSection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _batch_arithmetic(self) -> Config:
        prompts, mini, size = self.train.prompts_per_step, self.train.mini_batch_prompts, self.sampling.group_size
        if prompts * size > _MAX_ROLLOUTS:
            raise ValueError(
                f"train.prompts_per_step = {prompts} × sampling.group_size = {size} are more rollouts than the {_MAX_ROLLOUTS} "
                "allowed in a round; lower one"
            )
        if prompts % mini:
            raise ValueError(
                f"train.mini_batch_prompts = {mini} does not divide train.prompts_per_step = {prompts}; "
                f"choose one of {[d for d in range(1, prompts + 1) if prompts % d == 0]}"
            )
        return self

    @model_validator(mode="after")
    def _sharded(self) -> Config:
        unsupported = {
            "model.lora": self.model.lora is not None,
            "model.offload_reference": self.model.offload_reference,
            "optim.type = 'adamw_8bit'": self.optim.type == "adamw_8bit",
        }
        for name, wanted in unsupported.items():
            if wanted and self.train.parallel == "fsdp2":
                raise ValueError(
                    f"train.parallel = 'fsdp2' does not support {name}; use train.parallel = 'ddp', or leave it out"
                )
        return self

    @model_validator(mode="after")
    def _labels(self) -> Config:
        graded = self.reward.format_weight and self.reward.threshold is None
        if graded and self.objective.needs_labels:
            raise ValueError(
                f"reward.format_weight = {self.reward.format_weight} makes rewards between 0 and 1, and objective.type = "
                f"{self.objective.type!r} needs labels 0 or 1; set reward.threshold, or choose an advantage-based objective "
                "(grpo, dapo)"
            )
        return self

    @model_validator(mode="after")
    def _route(self) -> Config:
        if self.train.gradient_route == "direct" and not self.objective.sums_over_groups:
            raise ValueError(
                f"train.gradient_route = 'direct' is not exact for objective.type = {self.objective.type!r}, whose trust "
                "region couples all groups of a mini-batch; leave it out"
            )
        return self

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps in each round."""
        return self.train.prompts_per_step // self.train.mini_batch_prompts


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a recipe with its `base`, and apply overrides by dotted name, e.g. `{"optim.lr": 1e-6}`.

    An override given as text is read as TOML (`"1e-6"`), or kept as text if it is not TOML. If an override changes
    `objective.type`, the recipe's `[objective]` is left out, and that objective starts from its defaults.

    Raises ConfigError for a missing file, bases that form a cycle, invalid TOML, an unknown key (naming the nearest known
    one), or a value out of range.
    """
    path = Path(path)
    document, files = read_recipe(path, _OBJECTIVE)
    overrides = overrides or {}
    if name := str(overrides.get("objective.type", "")).strip("'\""):
        start_objective_over(document, name, _OBJECTIVE)
    for key, value in overrides.items():
        set_dotted(document, key, value)
    bases = f" (base: {', '.join(map(str, files[1:]))})" if files[1:] else ""
    return parse_config(document, source=f"{path}{bases}")


def parse_config(document: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a recipe given as nested dicts; ConfigError lists every fault."""
    check_values(document, source)
    objective = document.get("objective")
    if isinstance(objective, dict) and "type" not in objective:
        document = {**document, "objective": {"type": _OBJECTIVE, **objective}}
    try:
        return Config.model_validate(document)
    except ValidationError as error:
        faults = "; ".join(describe(fault, document, Config) for fault in error.errors())
        raise ConfigError(f"{source}: {faults}") from error


def dump_config(config: Config) -> str:
    """The resolved recipe as TOML; reading it back gives an equal Config."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
