"""The base classes of all objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from realrl.objectives.configs import BaseObjectiveConfig
from realrl.objectives.groups import Groups
from realrl.objectives.inputs import LossInputs, LossOutput, mean_log_ratio
from realrl.objectives.kl import kl_penalty
from realrl.objectives.segments import group_centred, in_float64, labels, mixed_groups

if TYPE_CHECKING:
    from realrl.objectives.exact import Plan


class Objective(BaseObjectiveConfig, ABC):
    """A pure function from log-probabilities and rewards to a loss to minimise. Its options are keyword arguments.

    There are two kinds: `ScoreObjective` (the rollouts of a group are coupled) and `AdditiveObjective` (a sum over rollouts).
    """

    def __call__(
        self,
        policy: Float[Tensor, "N T"],
        old: Float[Tensor, "N T"],
        mask: Bool[Tensor, "N T"],
        rewards: Float[Tensor, " N"] | Sequence[float | int],
        groups: Int[Tensor, " N"] | Sequence[int],
        *,
        ref: Float[Tensor, "N T"] | None = None,
        levels: Int[Tensor, " N"] | Sequence[int] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a whole mini-batch; its gradient flows to `policy`.

        `policy`, `old` and `ref` are log-probabilities (nats) of the sampled tokens under the model in training, the weights
        that sampled, and the frozen initial model. Padding may hold any finite value. `mask` is True on response tokens.
        `groups` has one number for each rollout, equal for rollouts of the same prompt. Groups may have different sizes, and
        rollouts may be in any order.

        Use `plan` if a mini-batch does not fit into memory at once. Raises ValueError for unusable input.
        """
        rewards_N, ids_N, levels_N = _columns(policy, rewards, groups, levels)
        return self.evaluate(LossInputs(policy, old, mask.bool(), rewards_N, ids_N, ref, levels_N)).loss

    def plan(
        self,
        old: Float[Tensor, "M T"],
        mask: Bool[Tensor, "M T"],
        rewards: Float[Tensor, " N"] | Sequence[float | int],
        groups: Int[Tensor, " N"] | Sequence[int],
        policy: Float[Tensor, "M T"] | None = None,
        *,
        ref: Float[Tensor, "M T"] | None = None,
        levels: Int[Tensor, " N"] | Sequence[int] | None = None,
        rows: Int[Tensor, " M"] | Sequence[int] | None = None,
        all_reduce: Callable[[Tensor], object] | None = None,
    ) -> Plan:
        """Prepare the exact gradient of a mini-batch for any split of its rollouts, see `Plan`.

        The arguments are those of `__call__` for the whole mini-batch, without gradient. `policy=None` means right after
        sampling, when the policy is still the one that sampled. Several processes can share a mini-batch: each passes the
        rewards and groups of all N rollouts, `rows` (the M rollouts that it holds), log-probabilities and mask of these M rows,
        and `all_reduce`, which sums a tensor over the processes in place, such as `torch.distributed.all_reduce`.
        """
        from realrl.objectives.exact import plan_mini_batch

        rewards_N, ids_N, levels_N = _columns(old, rewards, groups, levels)
        held = None if rows is None else torch.as_tensor(rows, device=old.device)
        return plan_mini_batch(self, old, mask.bool(), rewards_N, ids_N, policy, ref, levels_N, held, all_reduce)

    @abstractmethod
    def evaluate(self, inputs: LossInputs, whole: Groups | None = None) -> LossOutput:
        """Loss and metrics; the denominators come from the mini-batch `whole`, by default the inputs' own groups.

        If `sums_over_groups`, the losses of parts with whole groups add up to the loss of the mini-batch.
        """

    @abstractmethod
    def teaching_groups(self, groups: Groups) -> Bool[Tensor, " N"]:
        """Rows whose group can have a gradient, apart from the KL penalty."""

    def carries_gradient(self, groups: Groups) -> Bool[Tensor, " N"]:
        """Rows that can have a gradient; the others need no pass through the model."""
        if self.kl.active:
            return torch.ones_like(groups.rewards, dtype=torch.bool)
        return self.teaching_groups(groups)

    def penalty(self, inputs: LossInputs, whole: Groups) -> Float[Tensor, ""]:
        """The KL penalty, a sum over rows, so that the parts of any split add up."""
        return kl_penalty(inputs, self.kl, whole)

    def _finish(self, inputs: LossInputs, loss: Tensor, penalty: Tensor, metrics: dict[str, float]) -> LossOutput:
        """Add the KL penalty and the metrics that every objective reports."""
        groups = inputs.groups
        right_P = groups.sum((groups.rewards == 1).to(groups.rewards.dtype))
        solved_all, solved_none = int((right_P == groups.sizes).sum()), int((right_P == 0).sum())
        total = loss + penalty
        if not total.requires_grad and inputs.logprobs_policy.requires_grad:
            # No row has a gradient: return a loss that backward accepts, with a gradient of exactly 0.
            total = total + 0 * torch.where(inputs.loss_mask, inputs.logprobs_policy, 0).sum()
        common = {
            "loss": float(total.detach()),
            "groups/degenerate": float(solved_all + solved_none),
            "groups/solved_all": float(solved_all),
            "groups/solved_none": float(solved_none),
        }
        if self.kl.active:
            common["kl"] = float(penalty.detach()) / self.kl.coef
        return LossOutput(total, {**metrics, **common})


def _columns(like: Tensor, rewards: object, groups: object, levels: object) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rewards, group numbers and levels as tensors on the device of the log-probabilities."""
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    return (
        torch.as_tensor(rewards, dtype=dtype, device=like.device),
        torch.as_tensor(groups, device=like.device),
        None if levels is None else torch.as_tensor(levels, device=like.device),
    )


class AdditiveObjective(Objective):
    """An objective that is a sum over rollouts once the advantages are known, so rows can be split freely."""

    def advantages(self, groups: Groups) -> Float[Tensor, " N"]:
        """A = (r − mean)/(std + 1e-6) over the group (Eq. 3) with unbiased std; 0 for a group of one. Any finite rewards."""
        centred_N = group_centred(groups.rewards, groups.index, groups.count)
        variance_P = groups.sum(centred_N.square()) / (groups.sizes - 1).clamp(min=1)
        return centred_N / (variance_P.sqrt()[groups.index] + 1e-6)

    @abstractmethod
    def surrogate(
        self, inputs: LossInputs, whole: Groups, advantages_N: Float[Tensor, " N"]
    ) -> tuple[Float[Tensor, ""], dict[str, float]]:
        """The loss of some rows without the KL penalty, and metrics; denominators come from the mini-batch `whole`."""

    def additive_loss(self, inputs: LossInputs, whole: Groups, advantages_N: Float[Tensor, " N"]) -> Float[Tensor, ""]:
        """The loss of some rows, given advantages that were computed over whole groups."""
        return self.surrogate(inputs, whole, advantages_N)[0] + self.penalty(inputs, whole)

    def evaluate(self, inputs: LossInputs, whole: Groups | None = None) -> LossOutput:
        whole = whole or inputs.groups
        surrogate, metrics = self.surrogate(inputs, whole, self.advantages(inputs.groups))
        return self._finish(inputs, surrogate, self.penalty(inputs, whole), metrics)

    def teaching_groups(self, groups: Groups) -> Bool[Tensor, " N"]:
        low = groups.rewards.new_full((groups.count,), torch.inf)
        low = low.scatter_reduce(0, groups.index, groups.rewards, "amin")
        high = groups.rewards.new_full((groups.count,), -torch.inf)
        high = high.scatter_reduce(0, groups.index, groups.rewards, "amax")
        return (high > low)[groups.index]


class ScoreObjective(Objective):
    """An objective that depends on each rollout only through one number, its score; the rollouts of a group are coupled.

    An objective may use S numbers for each rollout: `score_shape` is (S,), scores and weights are (N, S), the main score first.
    """

    score_shape: ClassVar[tuple[int, ...]] = ()

    @property
    def zero_scores_when_fresh(self) -> bool:
        """Whether all scores are 0 right after sampling, so that they need no forward pass.

        True for s̄; an objective that defines other scores must override this."""
        return type(self).scores is ScoreObjective.scores

    def scores(self, inputs: LossInputs) -> Float[Tensor, "N ..."]:
        """The score of each rollout, with gradient; by default s̄ = mean_t(log π_θ − log π_old) (Eq. 5).

        A score depends on its own row alone, so any rows can be computed together.
        """
        return mean_log_ratio(inputs)

    @abstractmethod
    def loss_from_scores(self, scores_N: Float[Tensor, "N ..."], groups: Groups, whole: Groups) -> Float[Tensor, ""]:
        """The loss of whole `groups` without the KL penalty; denominators come from the mini-batch `whole`."""

    def weights(self, scores_N: Float[Tensor, "N ..."], groups: Groups, whole: Groups | None = None) -> Float[Tensor, "N ..."]:
        """W = d loss_from_scores / d scores (Eq. 9, 10), detached, by autograd in float64, in the dtype of the scores."""
        exact = groups.in_float64()
        with torch.enable_grad():
            leaf_N = in_float64(scores_N.detach()).requires_grad_(True)
            loss = self.loss_from_scores(leaf_N, exact, whole.in_float64() if whole else exact)
            if not loss.requires_grad:
                return torch.zeros_like(scores_N).detach()
            return torch.autograd.grad(loss, leaf_N)[0].to(scores_N.device, scores_N.dtype)

    def evaluate(self, inputs: LossInputs, whole: Groups | None = None) -> LossOutput:
        whole = whole or inputs.groups
        scores_N = self.scores(inputs)
        loss = self.loss_from_scores(scores_N, inputs.groups, whole)
        right_N = inputs.rewards == 1
        detached_N = main_score(scores_N.detach())
        metrics = {
            "score/positive_mean": float(detached_N[right_N].mean()) if right_N.any() else 0.0,
            "score/negative_mean": float(detached_N[~right_N].mean()) if not right_N.all() else 0.0,
        }
        return self._finish(inputs, loss, self.penalty(inputs, whole), metrics)

    def teaching_groups(self, groups: Groups) -> Bool[Tensor, " N"]:
        return torch.ones_like(groups.rewards, dtype=torch.bool)


def main_score(values_N: Float[Tensor, "N ..."]) -> Float[Tensor, " N"]:
    """The main score of each rollout (or its weight), without the other numbers that an objective uses."""
    return values_N if values_N.ndim == 1 else values_N[:, 0]


class LabelObjective(ScoreObjective):
    """A score objective that uses rewards as labels and may skip groups that are all right or all wrong."""

    def counted(self, groups: Groups) -> tuple[Bool[Tensor, " N"], Bool[Tensor, " N"]]:
        """(right_N, counted_N): labels, and the rows that enter the loss."""
        right_N = labels(groups.rewards)
        if self.degenerate_groups == "use":  # pyright: ignore[reportAttributeAccessIssue]
            return right_N, torch.ones_like(right_N)
        return right_N, mixed_groups(right_N, groups.index, groups.count)[groups.index]

    def teaching_groups(self, groups: Groups) -> Bool[Tensor, " N"]:
        return self.counted(groups)[1]
