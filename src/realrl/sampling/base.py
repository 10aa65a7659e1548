"""The interfaces of samplers and engines, and the types that they exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedModel

from realrl.types import Rollout


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `temperature` 0 is greedy, with log-probabilities of temperature 1; `top_k` 0 keeps every token.

    `batch_rows`: maximum rows that are decoded together.
    """

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 256
    batch_rows: int = 256


@runtime_checkable
class Sampler(Protocol):
    """Samples rollouts for training, ordered by prompt, then by sample.

    `seeds` has one 63-bit seed for each rollout, in this order. The draws of a rollout depend only on its seed.
    `on_finished(index, rollout)` is called as soon as a rollout ends, while others are still being sampled; `index` is its
    place in the returned list.
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
    """The options of `realrl eval` that an engine is made with.

    `model`: a folder, a hub name, or the model's name on the server `endpoint`. `dtype`: "float32" or "bfloat16".
    `longest_prompt` is in tokens. `concurrency`: requests that are sent at the same time. `retries`: per failed request.
    `timeout_s`: seconds for one response.
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
    """A request for one response: the prompt as text, as token ids if there is a tokenizer, or as messages for a server.

    `seed` (63 bits) belongs to this response, which so does not depend on the other requests.
    """

    text: str
    token_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class TextResponse:
    """A response. `tokens`: its length, None if a server does not say. `truncated`: it reached the limit of tokens."""

    text: str
    tokens: int | None
    truncated: bool


@runtime_checkable
class TextEngine(Protocol):
    """Answers requests. `generate` gives finished responses in lists, each response with the index of its request."""

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]: ...

    def close(self) -> None: ...
