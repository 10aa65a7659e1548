"""Checks of verl's configuration before any worker starts: all faults at once, each with the remedy."""

# pyright: reportMissingImports=false
from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from realrl.errors import ConfigError, RealrlError
from realrl.integrations.verl.loss import NAME
from realrl.integrations.verl.reward import build_graders, reward_section
from realrl.objectives import Objective, build_objective

TESTED_STRATEGY = "fsdp2"
REWARD_MODULE = "realrl.integrations.verl.reward"

logger = logging.getLogger(__name__)


def check_config(config: DictConfig) -> Objective:
    """The objective of `algorithm.real`. Raises ConfigError that lists every fault of the configuration."""
    faults: list[str] = []
    objective = None
    try:
        objective = objective_of(config)
    except (ConfigError, ValueError) as error:
        faults.append(f"algorithm.real: {error}")
    faults += [*_names(config), *_batches(config), *_other_losses(config), *_reward(config)]
    if objective is not None:
        faults += _reference(config, objective)
    if objective is None or faults:
        raise ConfigError("verl cannot run this configuration with realrl:\n" + "\n".join(f"- {fault}" for fault in faults))
    strategy = config.actor_rollout_ref.actor.strategy
    if strategy != TESTED_STRATEGY:
        logger.warning("actor.strategy=%s has not been tested with realrl; %s has", strategy, TESTED_STRATEGY)
    return objective


def objective_of(config: DictConfig) -> Objective:
    """The objective of the table `algorithm.real`, which has the keys of a recipe's `[objective]`; `type` is real by default.

    Raises ConfigError if it is not a table, ValueError for an unknown key or a value out of range.
    """
    table = config.algorithm.get("real") or {}
    if not isinstance(table, dict | DictConfig):
        raise ConfigError(f"got {table!r}, needs keys as in a recipe's [objective]: +algorithm.real.type={table}")
    fields: Any = OmegaConf.to_container(table, resolve=True) if isinstance(table, DictConfig) else dict(table)
    return build_objective({"type": "real", **fields})


def _names(config: DictConfig) -> Iterator[str]:
    for key in ("algorithm.adv_estimator", "actor_rollout_ref.actor.policy_loss.loss_mode"):
        found = OmegaConf.select(config, key)
        if found != NAME:
            yield f"{key}={found}: trainer.v1.trainer_mode={config.trainer.v1.trainer_mode} needs {NAME}; set {key}={NAME}"


def _batches(config: DictConfig) -> Iterator[str]:
    size = config.actor_rollout_ref.rollout.n
    if size < 2:
        yield f"actor_rollout_ref.rollout.n={size}: a group needs at least 2 rollouts, set actor_rollout_ref.rollout.n=8"
    prompts, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if prompts % mini:
        yield (
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} does not divide data.train_batch_size={prompts} (both are "
            f"prompts): choose one of {[divisor for divisor in range(1, prompts + 1) if prompts % divisor == 0]}"
        )


def _other_losses(config: DictConfig) -> Iterator[str]:
    """Faults of options that add another loss, change the rewards, or hide a part of a group."""
    actor, algorithm = config.actor_rollout_ref.actor, config.algorithm
    if algorithm.use_kl_in_reward:
        yield (
            "algorithm.use_kl_in_reward=True changes the rewards: set it to False, and for a penalty "
            "+algorithm.real.kl.target=ref +algorithm.real.kl.coef=0.001"
        )
    if actor.entropy_coeff:
        yield f"actor_rollout_ref.actor.entropy_coeff={actor.entropy_coeff}: our objectives have no entropy bonus, set it to 0"
    if actor.use_kl_loss and actor.kl_loss_coef:
        yield (
            f"actor_rollout_ref.actor.kl_loss_coef={actor.kl_loss_coef} adds verl's own penalty: set "
            "actor_rollout_ref.actor.kl_loss_coef=0 and give it as +algorithm.real.kl.target=ref "
            f"+algorithm.real.kl.coef={actor.kl_loss_coef}"
        )
    correction = algorithm.get("rollout_correction") or {}
    for key in ("bypass_mode", "rollout_is", "rollout_rs"):
        if correction.get(key):
            yield f"algorithm.rollout_correction.{key}={correction.get(key)} is not supported: leave it out"
    if config.get("distillation") and config.distillation.get("enabled"):
        yield "distillation.enabled=True adds another loss: set it to False"
    if actor.get("use_prefix_grouper"):
        yield "actor_rollout_ref.actor.use_prefix_grouper=True has not been tested with realrl: set it to False"
    if config.critic.enable:
        yield "critic.enable=True: our objectives have no critic, set critic.enable=False"


def _reward(config: DictConfig) -> Iterator[str]:
    if config.reward.reward_manager.name == "rate_limited":
        yield (
            "reward.reward_manager.name=rate_limited gives reward 0 to a response that could not be graded, a false label: "
            "set reward.reward_manager.name=naive"
        )
    function = config.reward.custom_reward_function
    if (function.path or "").removeprefix("pkg://").replace("/", ".") == REWARD_MODULE:
        try:
            build_graders(reward_section(function.get("reward_kwargs") or {}))
        except RealrlError as error:
            yield f"reward.custom_reward_function.reward_kwargs: {error}"


def _reference(config: DictConfig, objective: Objective) -> Iterator[str]:
    if objective.needs_ref and not config.actor_rollout_ref.actor.use_kl_loss:
        yield (
            f"algorithm.real.type={objective.type} with kl.target={objective.kl.target} needs the reference model, which verl "
            "loads only with actor.use_kl_loss: add actor_rollout_ref.actor.use_kl_loss=True "
            "actor_rollout_ref.actor.kl_loss_coef=0 (the penalty itself is ours), or +algorithm.real.kl.coef=0"
        )
