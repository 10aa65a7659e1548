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
