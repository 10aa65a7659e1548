"""Loss functions of the paper and its baselines: pure tensor code behind `build_objective`."""

from typing import Annotated

from pydantic import Field

from realrl.objectives.base import (
    AdditiveObjective,
    Objective,
    ScoreObjective,
    build_objective,
    list_objectives,
    register_objective,
)
from realrl.objectives.bce import BCEConfig
from realrl.objectives.grpo import DAPOConfig, GRPOConfig
from realrl.objectives.gspo import GSPOConfig
from realrl.objectives.kl import KLConfig
from realrl.objectives.real import RealConfig
from realrl.objectives.scores import totals_of
from realrl.objectives.trpa import TRPAConfig

ObjectiveConfig = Annotated[
    RealConfig | BCEConfig | GRPOConfig | DAPOConfig | GSPOConfig | TRPAConfig, Field(discriminator="type")
]

__all__ = [
    "AdditiveObjective",
    "BCEConfig",
    "DAPOConfig",
    "GRPOConfig",
    "GSPOConfig",
    "KLConfig",
    "Objective",
    "ObjectiveConfig",
    "RealConfig",
    "ScoreObjective",
    "TRPAConfig",
    "build_objective",
    "list_objectives",
    "register_objective",
    "totals_of",
]
