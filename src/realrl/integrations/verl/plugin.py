"""The entry point in the group `verl.plugins`: verl imports this module in every process that imports verl.

So it imports little. Our trainers need Ray and TransferQueue; they are registered when verl's own trainers are imported, which
happens only in the driver.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib
import logging

from realrl.integrations.engines import check_engine
from realrl.integrations.verl.late import after_import


def register() -> None:
    """Register our names with verl. Raises EngineError for an untested version of verl."""
    check_engine("verl")
    from verl.trainer.ppo.core_algos import register_adv_est, register_policy_loss

    from realrl.integrations.verl import loss

    register_policy_loss(loss.NAME)(loss.policy_loss)
    register_adv_est(loss.NAME)(loss.refuse_other_trainers)
    register_adv_est(loss.PER_MINI_BATCH)(loss.no_advantages_yet)
    after_import("verl.trainer.ppo.v1", lambda: importlib.import_module("realrl.integrations.verl.trainer"))


try:
    register()
except Exception:
    # verl logs a failed plugin only at DEBUG, and the run would end with an unknown trainer.
    logging.getLogger(__name__).exception("realrl could not register with verl, so trainer_mode real_sync is unknown")
    raise
