"""`RealConfig`: TRL's `GRPOConfig` with an objective of ours, and what cannot go with it refused at once."""

# TRL declares options as optional that are set once the configuration is made.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from realrl.errors import ConfigError
from realrl.objectives import Objective, build_objective
from realrl.system.hardware import choose_device, measure_rates

# Would change the loss behind the objective's back: option → the only value that goes, and what to do instead.
_REFUSED: dict[str, tuple[Any, str]] = {
    "use_liger_kernel": (False, "Liger's fused loss computes GRPO's own; leave it out"),
    "top_entropy_quantile": (1.0, "masking tokens by entropy tears the mean over a rollout's tokens; leave it out"),
    "off_policy_mask_threshold": (None, "the objective's weights are bounded without a mask; leave it out"),
    "scale_rewards": ("none", "rewards are labels, not scaled; leave it out"),
    "multi_objective_aggregation": ("sum_then_normalize", "rewards are summed with reward_weights; leave it out"),
    "entropy_coef": (0.0, "no objective here has an entropy bonus; leave it out"),
    "use_adaptive_entropy": (False, "no objective here has an entropy bonus; leave it out"),
}
# Inputs and outputs of the layer that precisions are compared on; the model is not known yet.
_LAYER = (1024, 1024)
# Options of TRL's own losses.
_WITHOUT_EFFECT = ("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "use_bias_correction_kl")


@dataclass
class RealConfig(GRPOConfig):
    """`GRPOConfig` with `objective`: the `[objective]` table of a recipe; every other option means what it means in TRL.

    But for one default: `bf16` is left off on a machine where bfloat16 is not faster than float32 (TRL turns it on everywhere).

    A group has to lie within one optimizer step. Where `per_device_train_batch_size` is a multiple of `num_generations` each
    micro-batch holds whole groups and the gradient needs no pass of its own; else every optimizer step but the first after
    sampling costs one forward pass more.

    Raises ConfigError for options that would change the loss or cut a group in two, ValueError as TRL does.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "objective"]

    scale_rewards: str = field(default="none", metadata={"help": "Only 'none': rewards are labels."})
    objective: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Objective, e.g. {'type': 'real', 'tau': 0.5} or your own {'type': 'my_losses:Margin'}; None is REAL with "
            "its defaults."
        },
    )
    reward_threshold: float | None = field(
        default=None, metadata={"help": "A weighted sum of rewards from here on is label 1, any other label 0."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None and not self.fp16:
            self.bf16 = measure_rates(choose_device("cpu" if self.use_cpu else "auto"), *_LAYER).trains_in_bfloat16
        super().__post_init__()
        objective = self.build_objective()
        faults = [
            f"{name} = {getattr(self, name)!r}: {remedy}"
            for name, (neutral, remedy) in _REFUSED.items()
            if getattr(self, name, neutral) != neutral
        ]
        faults += self._torn_groups() + self._reference(objective)
        if faults:
            raise ConfigError("RealConfig: " + "; ".join(faults))
        defaults = {option.name: option.default for option in fields(GRPOConfig)}
        for name in _WITHOUT_EFFECT:
            if name in defaults and getattr(self, name) != defaults[name]:
                warnings.warn(
                    f"RealConfig: {name} belongs to TRL's losses and has no effect on objective {objective.type}",
                    stacklevel=3,
                )

    def build_objective(self) -> Objective:
        """The objective that the configuration names; ConfigError where it cannot be built."""
        if isinstance(self.objective, str):
            raise ConfigError(f"RealConfig: objective = {self.objective!r} must be a table such as {{'type': 'real'}}")
        try:
            return build_objective({"type": "real"} | (self.objective or {}))
        except ValueError as error:
            raise ConfigError(f"RealConfig: objective = {self.objective!r}: {error}") from error

    @property
    def whole_micro_batches(self) -> bool:
        """Whether every micro-batch holds whole groups."""
        return self.per_device_train_batch_size % self.num_generations == 0

    def _torn_groups(self) -> list[str]:
        """Batch sizes that put parts of a group into different optimizer steps."""
        accumulation, per_generation = self.gradient_accumulation_steps, self.steps_per_generation
        size, rows = self.num_generations, self.per_device_train_batch_size * self.gradient_accumulation_steps
        if per_generation % accumulation:
            return [
                f"steps_per_generation = {per_generation} is no multiple of gradient_accumulation_steps = {accumulation}, so "
                f"that a step would span two generations; set steps_per_generation = {accumulation}, or leave it out"
            ]
        if per_generation != accumulation and rows % size:
            return [
                f"per_device_train_batch_size × gradient_accumulation_steps = {rows} rollouts of an optimizer step and process "
                f"are no multiple of num_generations = {size}, which cuts groups across optimizer steps; set "
                f"gradient_accumulation_steps or per_device_train_batch_size so that they are"
            ]
        return []

    def _reference(self, objective: Objective) -> list[str]:
        """Tell TRL by `beta` whether to keep a reference model; the objective alone weighs the penalty."""
        kl = objective.kl
        wanted = (kl.coef if kl.active and kl.target == "ref" else 1.0) if objective.needs_ref else 0.0
        if self.beta not in (0.0, wanted):
            return [
                f"beta = {self.beta}: the KL penalty is the objective's; leave beta out and set objective = "
                f"{ {'type': objective.type, 'kl': {'target': 'ref', 'coef': self.beta}} }"
            ]
        self.beta = wanted
        return []
