"""Loaded by verl in every process; does nothing unless VERL_PLATFORM=cpu, so that the environment stays usable for others."""

import importlib
import os

from realrl.integrations.verl.late import after_import


def register() -> None:
    from realrl_verl_harness import platform

    platform.install()
    after_import("verl.workers.engine", register_engine)
    after_import("verl.workers.rollout.base", register_rollout_adapter)
    after_import("verl.workers.rollout.replica", register_rollout_replica)
    after_import("verl.trainer.ppo.v1", lambda: importlib.import_module("realrl_verl_harness.recorder"))


def register_engine() -> None:
    from torch.distributed.fsdp import OffloadPolicy
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp import transformer_impl

    register = EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")
    register(transformer_impl.FSDPEngineWithLMHead)
    # The reference model would go to pinned memory, which needs a device.
    transformer_impl.CPUOffloadPolicy = lambda **_: OffloadPolicy()


def register_rollout_adapter() -> None:
    from verl.workers.rollout import base

    base._ROLLOUT_REGISTRY[("tinyhf", "async")] = "realrl_verl_harness.rollout.ServerAdapter"


def register_rollout_replica() -> None:
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    def load():
        from realrl_verl_harness.rollout import TinyReplica

        return TinyReplica

    RolloutReplicaRegistry.register("tinyhf", load)


if os.environ.get("VERL_PLATFORM") == "cpu":
    register()
