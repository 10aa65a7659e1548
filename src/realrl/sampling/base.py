"""What the trainer and the evaluation ask of a sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from realrl.types import Rollout


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """`temperature` 0 is greedy (log-probabilities are then those of temperature 1); `top_k` 0 keeps every token.

    `batch_rows`: rows decoded together at most.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    batch_rows: int = 256


@runtime_checkable
class Sampler(Protocol):
    """Rollouts come ordered by prompt, then by sample.

    `seeds` holds one 63-bit seed for each rollout, in that order; its draws depend on that seed alone. `on_finished(index,
    rollout)` is called as soon as a rollout has ended, while others are still sampled; `index` is its place in the list.
    """

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        group_size: int,
        params: SamplingParams,
        seeds: Sequence[int],
        on_finished: Callable[[int, Rollout], None] | None = None,
    ) -> list[Rollout]: ...

    def update_weights(self, model: PreTrainedModel) -> None: ...


Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an evaluation engine is made from: `realrl eval`'s options.

    `model` is a folder, a hub name, or the model's name on the server `endpoint`. `dtype` is "float32" or "bfloat16";
    `longest_prompt` counts tokens. `concurrency` requests are sent at a time, each with `retries` retries and `timeout_s`
    seconds.
    """

    model: str
    params: SamplingParams
    dtype: str = "float32"
    longest_prompt: int = 0
    seed: int = 0
    endpoint: str | None = None
    concurrency: int = 16
    retries: int = 6
    timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One response that an evaluation wants: the prompt rendered, as token ids where a tokenizer is at hand, as messages.

    `seed` (63 bits) is that of this response alone, so that it does not depend on what else is sampled.
    """

    text: str
    token_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class TextResponse:
    """A response; `tokens` counts its tokens (None where a server does not say), `truncated`: it hit the limit."""

    text: str
    tokens: int | None
    truncated: bool


@runtime_checkable
class TextEngine(Protocol):
    """What an evaluation asks of an engine: responses as they are done, in lists, each with the index of its request."""

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]: ...

    def close(self) -> None: ...
