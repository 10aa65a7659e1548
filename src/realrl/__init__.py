"""realrl: reinforcement learning with verifiable rewards as labels (REAL, arXiv 2602.05630).

    realrl.verify(r"so \\boxed{1/2}", "0.5")                 # True
    real = realrl.Real(tau=0.5)                             # an objective
    loss = real(policy, old, mask, rewards, groups)         # of a whole mini-batch
    plan = real.plan(old, mask, rewards, groups)            # exact for any split of it

Names are loaded on first use: importing this takes no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realrl.objectives import (
        BCE,
        CISPO,
        DAPO,
        GMPO,
        GRPO,
        GSPO,
        NFT,
        PACS,
        SAPO,
        TRPA,
        AdditiveObjective,
        DisCO,
        DrGRPO,
        Groups,
        KLConfig,
        LossInputs,
        Objective,
        Plan,
        Real,
        ScoreObjective,
        build_objective,
    )
    from realrl.rewards import verify

__version__ = "0.1.0"

__all__ = [
    "BCE",
    "CISPO",
    "DAPO",
    "GMPO",
    "GRPO",
    "GSPO",
    "NFT",
    "PACS",
    "SAPO",
    "TRPA",
    "AdditiveObjective",
    "DisCO",
    "DrGRPO",
    "Groups",
    "KLConfig",
    "LossInputs",
    "Objective",
    "Plan",
    "Real",
    "ScoreObjective",
    "build_objective",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("realrl.rewards" if name == "verify" else "realrl.objectives"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
