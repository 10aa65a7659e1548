"""Loss functions of the paper, its baselines and others: pure tensor code, one file for each loss.

Classes are imported on first use, so that reading a recipe does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Discriminator, SerializeAsAny, Tag

from realrl.objectives.configs import (
    CONFIGS,
    BaseObjectiveConfig,
    BCEConfig,
    CISPOConfig,
    DAPOConfig,
    DisCOConfig,
    DrGRPOConfig,
    GMPOConfig,
    GRPOConfig,
    GSPOConfig,
    KLConfig,
    NFTConfig,
    PACSConfig,
    RealConfig,
    SAPOConfig,
    TRPAConfig,
)
from realrl.objectives.registry import CLASSES, build_objective, list_objectives, options_of

if TYPE_CHECKING:
    from realrl.objectives.base import AdditiveObjective, Objective, ScoreObjective
    from realrl.objectives.bce import BCE
    from realrl.objectives.cispo import CISPO
    from realrl.objectives.disco import DisCO
    from realrl.objectives.exact import Plan
    from realrl.objectives.gmpo import GMPO
    from realrl.objectives.groups import Groups
    from realrl.objectives.grpo import DAPO, GRPO, DrGRPO
    from realrl.objectives.gspo import GSPO
    from realrl.objectives.inputs import LossInputs, LossOutput
    from realrl.objectives.nft import NFT
    from realrl.objectives.pacs import PACS
    from realrl.objectives.real import Real
    from realrl.objectives.sapo import SAPO
    from realrl.objectives.trpa import TRPA

_LAZY = {
    "AdditiveObjective": "base",
    "Objective": "base",
    "ScoreObjective": "base",
    "Plan": "exact",
    "Groups": "groups",
    "LossInputs": "inputs",
    "LossOutput": "inputs",
    **{path.rpartition(":")[2]: path.partition(":")[0].rpartition(".")[2] for path in CLASSES.values()},
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"realrl.objectives.{_LAZY[name]}"), name)


def _tag(value: Any) -> str:
    name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "own" if isinstance(name, str) and ":" in name else str(name)


def _own(value: Any) -> Any:
    return build_objective(value) if isinstance(value, dict) else value


# The options for each `type`. A user's own objective ("module:Class") holds its options itself.
ObjectiveConfig = Annotated[
    Annotated[RealConfig, Tag("real")]
    | Annotated[BCEConfig, Tag("bce")]
    | Annotated[GRPOConfig, Tag("grpo")]
    | Annotated[DAPOConfig, Tag("dapo")]
    | Annotated[GSPOConfig, Tag("gspo")]
    | Annotated[TRPAConfig, Tag("trpa")]
    | Annotated[DisCOConfig, Tag("disco")]
    | Annotated[DrGRPOConfig, Tag("dr_grpo")]
    | Annotated[CISPOConfig, Tag("cispo")]
    | Annotated[SAPOConfig, Tag("sapo")]
    | Annotated[GMPOConfig, Tag("gmpo")]
    | Annotated[PACSConfig, Tag("pacs")]
    | Annotated[NFTConfig, Tag("nft")]
    | Annotated[SerializeAsAny[BaseObjectiveConfig], BeforeValidator(_own), Tag("own")],
    Discriminator(_tag),
]

__all__ = [
    "BCE",
    "CISPO",
    "CONFIGS",
    "DAPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "NFT",
    "PACS",
    "SAPO",
    "TRPA",
    "AdditiveObjective",
    "BCEConfig",
    "BaseObjectiveConfig",
    "CISPOConfig",
    "DAPOConfig",
    "DisCO",
    "DisCOConfig",
    "DrGRPO",
    "DrGRPOConfig",
    "GMPOConfig",
    "GRPOConfig",
    "GSPOConfig",
    "Groups",
    "KLConfig",
    "LossInputs",
    "LossOutput",
    "NFTConfig",
    "Objective",
    "ObjectiveConfig",
    "PACSConfig",
    "Plan",
    "Real",
    "RealConfig",
    "SAPOConfig",
    "ScoreObjective",
    "TRPAConfig",
    "build_objective",
    "list_objectives",
    "options_of",
]
