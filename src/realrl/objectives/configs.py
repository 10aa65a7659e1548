"""The options of all objectives: frozen, typed and free of torch, so that reading a recipe is fast."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KLConfig(_Options):
    """The KL penalty of any objective, with the estimators from Schulman's note "Approximating KL divergence"."""

    target: Literal["none", "ref", "old"] = Field(
        default="none", description="ref: the frozen initial model; old: the weights that sampled; none: no penalty"
    )
    coef: float = Field(default=0.0, ge=0, description="coefficient of the penalty")
    estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3", description="with d = log π_θ − log π_target: d, d²/2, e^−d + d − 1"
    )

    @model_validator(mode="after")
    def _is_whole(self) -> KLConfig:
        if self.coef and self.target == "none":
            raise ValueError(f"coef = {self.coef} has no effect without a target; set target = 'ref' or 'old', or coef = 0")
        if self.target != "none" and "coef" not in self.model_fields_set:
            raise ValueError(f"target = {self.target!r} has no effect without a coef; set coef, for example 0.001")
        return self

    @property
    def active(self) -> bool:
        """Whether the penalty has any effect."""
        return self.target != "none" and self.coef > 0


class BaseObjectiveConfig(_Options):
    """The options of every objective, and what it needs from a run."""

    needs_labels: ClassVar[bool] = False
    """Whether rewards must be 0 or 1."""

    type: Any
    kl: KLConfig = Field(default=KLConfig(), description="a KL penalty added to the objective")

    @property
    def needs_ref(self) -> bool:
        """Whether the objective uses log-probabilities of the frozen initial model."""
        return self.kl.active and self.kl.target == "ref"

    @property
    def sums_over_groups(self) -> bool:
        """Whether the loss is a sum over groups; if not, no split into whole groups adds up."""
        return True

    @property
    def zero_scores_when_fresh(self) -> bool:
        """Whether all scores are 0 right after sampling, so that they need no forward pass."""
        return True


Degenerate = Annotated[
    Literal["skip", "use"],
    Field(description="groups that are all right or all wrong: skip gives them no loss, use takes the formula literally"),
]


class RealConfig(BaseObjectiveConfig):
    """REAL: τ = 0.5, anchor logit at 0, no KL; skips groups that are all right or all wrong."""

    needs_labels: ClassVar[bool] = True
    type: Literal["real"] = "real"
    tau: float = Field(default=0.5, gt=0, description="temperature τ of the logits s̄/τ; weights are at most 1/τ")
    anchor: bool = Field(default=True, description="the anchor logit at 0; false: Eq. 2")
    degenerate_groups: Degenerate = "skip"


class BCEConfig(BaseObjectiveConfig):
    """Binary cross-entropy: τ = 0.5, a sum over each group, no KL; skips groups that are all right or all wrong."""

    needs_labels: ClassVar[bool] = True
    type: Literal["bce"] = "bce"
    tau: float = Field(default=0.5, gt=0, description="temperature τ of the logits s̄/τ")
    reduction: Literal["sum", "mean"] = Field(
        default="sum", description="sum: over each group's rollouts (the paper); mean: over all rollouts that count"
    )
    degenerate_groups: Degenerate = "skip"


class GRPOConfig(BaseObjectiveConfig):
    """GRPO: ε = 0.2, one-sided clipping, KL to the reference with coefficient 0.001 and estimator k3."""

    type: Literal["grpo"] = "grpo"
    epsilon: float = Field(default=0.2, gt=0, description="ε of the clip of ρ to [1 − ε, 1 + ε]")
    clip: Literal["one_sided", "bidirectional"] = Field(
        default="one_sided", description="bidirectional: drop every token with ρ outside the clip, for either sign of A"
    )
    kl: KLConfig = Field(default=KLConfig(target="ref", coef=0.001), description="a KL penalty added to the objective")


class DrGRPOConfig(BaseObjectiveConfig):
    """Dr. GRPO: ε = 0.2, sums over tokens divided by 3000 (the paper's limit of response tokens), no KL."""

    type: Literal["dr_grpo"] = "dr_grpo"
    epsilon: float = Field(default=0.2, gt=0, description="ε of the clip of ρ to [1 − ε, 1 + ε]")
    length_divisor: float = Field(default=3000.0, gt=0, description="divisor of a rollout's sum over tokens")


class DAPOConfig(BaseObjectiveConfig):
    """DAPO's loss: ε_low = 0.2, ε_high = 0.28, no KL."""

    type: Literal["dapo"] = "dapo"
    epsilon_low: float = Field(default=0.2, gt=0, description="ρ is clipped at 1 − this")
    epsilon_high: float = Field(default=0.28, gt=0, description="ρ is clipped at 1 + this")


class GSPOConfig(BaseObjectiveConfig):
    """GSPO: ε_low = 3e-4, ε_high = 4e-4, no KL."""

    type: Literal["gspo"] = "gspo"
    epsilon_low: float = Field(default=3e-4, gt=0, description="the sequence ratio is clipped at 1 − this")
    epsilon_high: float = Field(default=4e-4, gt=0, description="the sequence ratio is clipped at 1 + this")


class TRPAConfig(BaseObjectiveConfig):
    """TRPA: β = 0.1, anisotropy 2.5, KL to the sampling weights with coefficient 0.001 and estimator k3."""

    needs_labels: ClassVar[bool] = True
    type: Literal["trpa"] = "trpa"
    beta: float = Field(default=0.1, gt=0, description="β of the margins β(Δ_w − Δ_l)")
    anisotropy: float = Field(default=2.5, gt=0, description="factor of a margin if its better response is right")
    kl: KLConfig = Field(default=KLConfig(target="old", coef=0.001), description="a KL penalty added to the objective")

    @property
    def needs_ref(self) -> bool:
        """Always True: Δ is relative to the reference model."""
        return True

    @property
    def zero_scores_when_fresh(self) -> bool:
        """False: Δ is relative to the reference model, not to the sampling weights."""
        return False


def _default_tau(given: dict[str, Any]) -> float:
    return 1.0 if given.get("score") == "Lratio" else 10.0


class DisCOConfig(BaseObjectiveConfig):
    """DisCO: score log-L with τ = 10 (L-ratio: τ = 1), β = 1e3, δ = 1e-4; `negatives = "mean"` is DisCO-b."""

    needs_labels: ClassVar[bool] = True
    type: Literal["disco"] = "disco"
    score: Literal["logL", "Lratio"] = Field(default="logL", description="logL: mean log π_θ; Lratio: mean ρ")
    negatives: Literal["logmeanexp", "mean"] = Field(default="logmeanexp", description="mean: DisCO-b, the limit τ → ∞")
    tau: float = Field(default_factory=_default_tau, gt=0, description="τ of the wrong rollouts; default 10, for Lratio 1")
    beta: float = Field(default=1e3, ge=0, description="β of the squared hinge on KL; 0: no trust region")
    delta: float = Field(default=1e-4, ge=0, description="KL in nats above which the hinge acts")

    @property
    def sums_over_groups(self) -> bool:
        """False with the trust region, where one KL couples all groups."""
        return self.beta == 0

    @property
    def zero_scores_when_fresh(self) -> bool:
        """True for "Lratio": mean(ρ − 1) is 0 right after sampling, mean log π_θ is not."""
        return self.score == "Lratio"


class CISPOConfig(BaseObjectiveConfig):
    """CISPO: importance weights of at most 5, no KL; `max_ratio` is the paper's 1 + ε_high."""

    type: Literal["cispo"] = "cispo"
    max_ratio: float = Field(default=5.0, gt=0, description="largest importance weight ρ")


class SAPOConfig(BaseObjectiveConfig):
    """SAPO: temperatures 1.0 where A > 0 and 1.05 elsewhere, no KL."""

    type: Literal["sapo"] = "sapo"
    tau_positive: float = Field(default=1.0, gt=0, description="temperature of the gate where A > 0")
    tau_negative: float = Field(default=1.05, gt=0, description="temperature of the gate elsewhere")


class GMPOConfig(BaseObjectiveConfig):
    """GMPO: ratios between e^−0.4 and e^0.4 (both ε are in log space), no KL."""

    type: Literal["gmpo"] = "gmpo"
    epsilon_low: float = Field(default=0.4, gt=0, description="log ρ is clipped at −this where A < 0")
    epsilon_high: float = Field(default=0.4, gt=0, description="log ρ is clipped at this where A > 0")


class PACSConfig(BaseObjectiveConfig):
    """PACS: β = 1, right and wrong rollouts of a group balanced, no KL."""

    needs_labels: ClassVar[bool] = True
    type: Literal["pacs"] = "pacs"
    beta: float = Field(default=1.0, gt=0, description="β of the implicit reward β Σ_t s_t")
    balance: bool = Field(default=True, description="give the right and the wrong rollouts of a group the same total weight")

    @property
    def zero_scores_when_fresh(self) -> bool:
        """True: Σ_t s_t is 0 right after sampling."""
        return True


class NFTConfig(BaseObjectiveConfig):
    """NFT: ε = 1, questions weighted with 1 − r̂ ("dr_grpo"); no KL."""

    needs_labels: ClassVar[bool] = True
    type: Literal["nft"] = "nft"
    epsilon: float = Field(default=1.0, gt=0, description="floor of the implicit negative policy's ratio")
    question_weight: Literal["dr_grpo", "grpo", "equal"] = Field(
        default="dr_grpo", description="with r̂ the group's share of right rollouts: 1 − r̂, √((1 − r̂)/r̂), or 1"
    )


CONFIGS: dict[str, type[BaseObjectiveConfig]] = {
    config.model_fields["type"].default: config
    for config in (
        RealConfig,
        BCEConfig,
        GRPOConfig,
        DAPOConfig,
        GSPOConfig,
        TRPAConfig,
        DisCOConfig,
        DrGRPOConfig,
        CISPOConfig,
        SAPOConfig,
        GMPOConfig,
        PACSConfig,
        NFTConfig,
    )
}
