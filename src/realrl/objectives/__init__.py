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
from realrl.objectives.cispo import CISPOConfig
from realrl.objectives.disco import DisCOConfig
from realrl.objectives.gmpo import GMPOConfig
from realrl.objectives.grpo import DAPOConfig, DrGRPOConfig, GRPOConfig
from realrl.objectives.gspo import GSPOConfig
from realrl.objectives.kl import KLConfig
from realrl.objectives.nft import NFTConfig
from realrl.objectives.pacs import PACSConfig
from realrl.objectives.real import RealConfig
from realrl.objectives.sapo import SAPOConfig
from realrl.objectives.scores import totals_of
from realrl.objectives.trpa import TRPAConfig

ObjectiveConfig = Annotated[
    RealConfig
    | BCEConfig
    | GRPOConfig
    | DAPOConfig
    | GSPOConfig
    | TRPAConfig
    | DisCOConfig
    | DrGRPOConfig
    | CISPOConfig
    | SAPOConfig
    | GMPOConfig
    | PACSConfig
    | NFTConfig,
    Field(discriminator="type"),
]

__all__ = [
    "AdditiveObjective",
    "BCEConfig",
    "CISPOConfig",
    "DAPOConfig",
    "DisCOConfig",
    "DrGRPOConfig",
    "GMPOConfig",
    "GRPOConfig",
    "GSPOConfig",
    "KLConfig",
    "NFTConfig",
    "Objective",
    "ObjectiveConfig",
    "PACSConfig",
    "RealConfig",
    "SAPOConfig",
    "ScoreObjective",
    "TRPAConfig",
    "build_objective",
    "list_objectives",
    "register_objective",
    "totals_of",
]
