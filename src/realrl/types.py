"""The nouns of the project: what flows from the data to the loss.

Shape letters: P prompts (groups), N rollouts, T response tokens (padded to the longest), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a data set: a problem text, its gold answer, and further answers that are accepted as well.

    An answer that is a bare comma-separated list needs all its items, in any order.
    """

    id: str
    problem: str
    answer: str
    also_accept: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """Every accepted answer; a verifier asks for any one of them."""
        return (self.answer, *self.also_accept)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the model sees it: rendered text and token ids (special tokens included)."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response; `token_ids` holds the end token where one was sampled, and nothing after it.

    `logprobs_sampler` are the sampler's own log-probabilities (nats) of these tokens, of logits divided by the
    sampling temperature, before top-p or top-k cut the distribution. `truncated`: no end token within the limit.
    """

    prompt_index: int
    token_ids: tuple[int, ...]
    logprobs_sampler: tuple[float, ...]
    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response: `status` is correct, wrong, no_answer or grader_error.

    `stage` names what decided; `seconds` is how long that took; `score` is a graded reward in [0, 1] where
    the verifier gives one.
    """

    status: str
    extracted: str | None = None
    reason: str = ""
    stage: str = ""
    seconds: float = 0.0
    score: float | None = None

    @property
    def reward(self) -> float:
        """The score where the verifier gives one; else 1.0 for a correct answer, 0.0 for any other."""
        if self.score is not None:
            return self.score
        return 1.0 if self.status == "correct" else 0.0

    @property
    def level(self) -> int:
        """TRPA's preference level: 2 where the reward is 1, else 1 for a parsable answer and 0 for none."""
        return 2 if self.reward == 1 else int(self.status in ("correct", "wrong"))


@dataclass(frozen=True, slots=True)
class Batch:
    """The rollouts of whole groups, right-padded; row order is free, `group_ids` indexes `prompts`.

    The prompt of row n is `prompts[group_ids[n]]`.
    """

    prompts: list[Prompt]
    response_ids: Int[Tensor, "N T"]
    loss_mask: Bool[Tensor, "N T"]
    group_ids: Int[Tensor, " N"]
    rewards: Float[Tensor, " N"]
    levels: Int[Tensor, " N"]
    logprobs_sampler: Float[Tensor, "N T"]

    def __len__(self) -> int:
        return self.response_ids.shape[0]


@dataclass(frozen=True, slots=True)
class LossTotals:
    """Denominators of one optimizer step, over all its micro-batches and ranks.

    A part of a mini-batch passes the whole one's totals, so that losses of parts add up to the loss of the whole.
    """

    num_groups: int
    num_rollouts: int
    num_tokens: int
    num_mixed_rollouts: int
    num_pairs: int


@dataclass(frozen=True, slots=True)
class LossInputs:
    """What an objective sees of N rollouts in any order, of ragged groups.

    Log-probabilities are (N, T) floats in nats, `logprobs_policy` with gradient; padding may hold anything finite.
    `loss_mask` (N, T) bool is True on response tokens. `rewards` (N,) float, `group_ids` (N,) int64. `levels` (N,) int64
    is TRPA's preference level (default: 2 where the reward is 1, else 1).

    Raises ValueError for shapes that disagree, an empty response, or NaN in the rewards.
    """

    logprobs_policy: Float[Tensor, "N T"]
    logprobs_old: Float[Tensor, "N T"]
    loss_mask: Bool[Tensor, "N T"]
    rewards: Float[Tensor, " N"]
    group_ids: Int[Tensor, " N"]
    logprobs_ref: Float[Tensor, "N T"] | None = None
    levels: Int[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.logprobs_policy.shape)
        if len(shape) != 2 or shape[0] == 0:
            raise ValueError(f"logprobs_policy has shape {shape}; it must be (N, T) with N >= 1")
        for name in ("logprobs_old", "loss_mask", "logprobs_ref"):
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be that of logprobs_policy, {shape}")
        for name in ("rewards", "group_ids", "levels"):
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) != shape[:1]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must hold one value a rollout, {shape[:1]}")
        if self.loss_mask.dtype != torch.bool:
            raise ValueError(f"loss_mask has dtype {self.loss_mask.dtype}; it must be bool, True on response tokens")
        if self.group_ids.is_floating_point():
            raise ValueError(f"group_ids has dtype {self.group_ids.dtype}; it must be int64")
        empty = (~self.loss_mask.any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise ValueError(
                f"rollout {empty[0]} has no response token ({len(empty)} such of {shape[0]}); "
                "a rollout has at least its end token: drop it or keep the end token in loss_mask"
            )
        if not bool(torch.isfinite(self.rewards).all()):
            raise ValueError("rewards hold NaN or infinity; every rollout needs a finite reward")


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A scalar loss with gradient to `logprobs_policy`, and plain floats under their metric names."""

    loss: Float[Tensor, ""]
    metrics: dict[str, float] = field(default_factory=dict)
