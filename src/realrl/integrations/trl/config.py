"""`RealConfig`: TRL's `GRPOConfig` with one of our objectives. It refuses options that contradict the objective."""

# TRL declares options as optional although they are set when the configuration is made.
# pyright: reportOptionalOperand=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from typing import Any

from trl.trainer.grpo_config import GRPOConfig

from realrl.errors import ConfigError
from realrl.objectives import Objective, build_objective
from realrl.system.hardware import choose_device, measure_rates

# Options that would change the loss: option → the only allowed value, and what to do instead.
_REFUSED: dict[str, tuple[Any, str]] = {
    "use_liger_kernel": (False, "Liger's fused loss is GRPO's; leave it out"),
    "top_entropy_quantile": (1.0, "masking tokens by entropy changes the mean over a rollout's tokens; leave it out"),
    "off_policy_mask_threshold": (None, "a mask would change the objective; leave it out"),
    "scale_rewards": ("none", "rewards are labels, not scaled; leave it out"),
    "multi_objective_aggregation": ("sum_then_normalize", "rewards are summed with reward_weights; leave it out"),
    "entropy_coef": (0.0, "our objectives have no entropy bonus; leave it out"),
    "use_adaptive_entropy": (False, "our objectives have no entropy bonus; leave it out"),
}
# Inputs and outputs of the layer on which precisions are compared, because the model is not known yet.
_LAYER = (1024, 1024)
# Options that only TRL's own losses use.
_WITHOUT_EFFECT = ("loss_type", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "use_bias_correction_kl")


@dataclass
class RealConfig(GRPOConfig):
    """`GRPOConfig` with `objective`, the `[objective]` table of a recipe. Every other option means the same as in TRL.

    One default differs: `bf16` is off on a machine where bfloat16 is not faster than float32 (TRL turns it on everywhere).

    A group must lie within one optimizer step. If `per_device_train_batch_size` is a multiple of `num_generations`, each
    micro-batch has whole groups, and the gradient needs no further pass. Otherwise every optimizer step needs one more forward
    pass, except the first one after sampling.

    Raises ConfigError for options that would change the loss or split a group over optimizer steps, ValueError as TRL does.
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
        default=None, metadata={"help": "A weighted sum of rewards of at least this value is label 1, any other is label 0."}
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
        """The objective of the configuration. Raises ConfigError if it cannot be built."""
        if isinstance(self.objective, str):
            raise ConfigError(f"RealConfig: objective = {self.objective!r} must be a table such as {{'type': 'real'}}")
        try:
            return build_objective({"type": "real"} | (self.objective or {}))
        except ValueError as error:
            raise ConfigError(f"RealConfig: objective = {self.objective!r}: {error}") from error

    @property
    def whole_micro_batches(self) -> bool:
        """Whether every micro-batch has whole groups."""
        return self.per_device_train_batch_size % self.num_generations == 0

    def _torn_groups(self) -> list[str]:
        """Faults of batch sizes that put parts of a group into different optimizer steps."""
        accumulation, per_generation = self.gradient_accumulation_steps, self.steps_per_generation
        size, rows = self.num_generations, self.per_device_train_batch_size * self.gradient_accumulation_steps
        if per_generation % accumulation:
            return [
                f"steps_per_generation = {per_generation} is not a multiple of gradient_accumulation_steps = {accumulation}; "
                f"a step would need rollouts of two generations; set steps_per_generation = {accumulation}, or leave it out"
            ]
        if per_generation != accumulation and rows % size:
            return [
                f"per_device_train_batch_size × gradient_accumulation_steps = {rows} rollouts of an optimizer step and process "
                f"is not a multiple of num_generations = {size}, so groups would be split over optimizer steps; change "
                f"gradient_accumulation_steps or per_device_train_batch_size"
            ]
        return []

    def _reference(self, objective: Objective) -> list[str]:
        """Set `beta`, which tells TRL whether to load a reference model. The penalty itself is part of the objective."""
        kl = objective.kl
        wanted = (kl.coef if kl.active and kl.target == "ref" else 1.0) if objective.needs_ref else 0.0
        if self.beta not in (0.0, wanted):
            return [
                f"beta = {self.beta}: the KL penalty belongs to the objective; leave beta out and set objective = "
                f"{ {'type': objective.type, 'kl': {'target': 'ref', 'coef': self.beta}} }"
            ]
        self.beta = wanted
        return []
