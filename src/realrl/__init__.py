"""realrl: reinforcement learning with verifiable rewards as labels (REAL, arXiv 2602.05630).

    realrl.verify(r"so \\boxed{1/2}", "0.5")                 # True
    real = realrl.Real(tau=0.5)                             # an objective
    loss = real(policy, old, mask, rewards, groups)         # of a whole mini-batch
    plan = real.plan(old, mask, rewards, groups)            # exact for any split of it
    realrl.train("recipes/tiny.toml", {"optim.lr": 1e-4})   # a run; returns a Summary

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
    from realrl.training import Summary, train

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
    "Summary",
    "build_objective",
    "train",
    "verify",
]

# Where a name comes from, if not from the objectives.
_ROOMS = {"verify": "realrl.rewards", "train": "realrl.training", "Summary": "realrl.training"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ROOMS.get(name, "realrl.objectives")), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
