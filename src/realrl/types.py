"""The nouns of the project: what flows from the data to the loss. Free of torch.

Shape letters: P prompts (groups), N rollouts, T response tokens (padded to the longest), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Problem:
    """One row of a data set: a problem, its gold answer, and other accepted answers.

    If the gold answer is a bare comma-separated list, a response must give all its items, in any order.
    """

    id: str
    problem: str
    answer: str
    also_accept: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """All accepted answers; a response is correct if it matches one of them."""
        return (self.answer, *self.also_accept)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A problem as the model sees it: rendered text and token ids (special tokens included)."""

    problem: Problem
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response; `token_ids` ends with the end token if one was sampled.

    `logprobs_sampler` holds the sampler's own log-probabilities (nats) of these tokens. They come from logits divided by the
    sampling temperature, before top-p or top-k. `truncated` means that no end token came within the limit.
    """

    prompt_index: int
    token_ids: tuple[int, ...]
    logprobs_sampler: tuple[float, ...]
    text: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verifier's result for one response: `status` is correct, wrong, no_answer or grader_error.

    `stage` names the check that decided, `seconds` is the time it took. `score` is a reward in [0, 1], if the verifier
    gives one.
    """

    status: str
    extracted: str | None = None
    reason: str = ""
    stage: str = ""
    seconds: float = 0.0
    score: float | None = None

    @property
    def reward(self) -> float:
        """The score, if there is one; else 1.0 for a correct answer and 0.0 for any other."""
        if self.score is not None:
            return self.score
        return 1.0 if self.status == "correct" else 0.0

    @property
    def level(self) -> int:
        """TRPA's preference level: 2 if the reward is 1, else 1 for a parsable answer and 0 for no answer."""
        return 2 if self.reward == 1 else int(self.status in ("correct", "wrong"))


@dataclass(frozen=True, slots=True)
class Batch:
    """The rollouts of whole groups, right-padded, in any order; the prompt of row n is `prompts[group_ids[n]]`."""

    prompts: list[Prompt]
    response_ids: Int[Tensor, "N T"]
    loss_mask: Bool[Tensor, "N T"]
    group_ids: Int[Tensor, " N"]
    rewards: Float[Tensor, " N"]
    levels: Int[Tensor, " N"]
    logprobs_sampler: Float[Tensor, "N T"]

    def __len__(self) -> int:
        return self.response_ids.shape[0]
