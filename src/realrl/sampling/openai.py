"""Evaluation through any server with OpenAI's interface: vLLM, SGLang, llama.cpp, `transformers serve`, hosted models."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from realrl.errors import ConfigError
from realrl.sampling.base import SamplingParams, TextRequest, TextResponse

# Seconds that one response may take; 8,192 tokens at 5 tokens a second.
_TIMEOUT_S = 1800.0
_SEED_BITS = 31


class EndpointEngine:
    """Asks `concurrency` requests at a time; the API key comes from the environment's OPENAI_API_KEY alone.

    Refused (429) or failed (5xx, connection) requests are tried again up to `retries` times, with exponential backoff or
    the server's Retry-After. A request without messages goes to /completions, others to /chat/completions.
    """

    def __init__(self, url: str, model: str, params: SamplingParams, *, concurrency: int = 16, retries: int = 6) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError("--endpoint needs the openai client: pip install 'realrl[endpoint]'") from error
        self._errors: Any = openai
        self._key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client: Any = openai.OpenAI(base_url=url, api_key=self._key, max_retries=retries, timeout=_TIMEOUT_S)
        self._url, self._model, self._params, self._concurrency = url, model, params, concurrency

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]:
        """Responses in the order in which they are done.

        A request that fails for good ends the work: those under way are still given, then ConfigError says why.
        """
        jobs: queue.SimpleQueue[tuple[int, TextRequest]] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[int, TextResponse | Exception] | None] = queue.SimpleQueue()
        for job in enumerate(requests):
            jobs.put(job)
        failed = threading.Event()

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while not failed.is_set():
                    index, request = jobs.get_nowait()
                    try:
                        results.put((index, self._ask(request)))
                    except Exception as error:  # noqa: BLE001  raised again below, in the caller's thread
                        failed.set()
                        results.put((index, error))
            results.put(None)

        # Daemons: an interrupted evaluation does not wait for answers that are still under way.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(self._concurrency)]
        for worker in workers:
            worker.start()
        failure: Exception | None = None
        working = len(workers)
        while working:
            result = results.get()
            if result is None:
                working -= 1
            elif isinstance(result[1], Exception):
                failure = failure or result[1]
            else:
                yield [(result[0], result[1])]
        if failure is not None:
            raise failure

    def _ask(self, request: TextRequest) -> TextResponse:
        settings: dict[str, Any] = {
            "model": self._model,
            "temperature": self._params.temperature,
            "top_p": self._params.top_p,
            "max_tokens": self._params.max_new_tokens,
            "seed": request.seed % 2**_SEED_BITS,
        }
        try:
            if request.messages:
                reply = self._client.chat.completions.create(messages=list(request.messages), **settings)
            else:
                reply = self._client.completions.create(prompt=request.text, **settings)
            choice = reply.choices[0]
        except self._errors.APIStatusError as error:
            hint = "; set OPENAI_API_KEY in the environment" if error.status_code in (401, 403) else ""
            # A server may say which key it refuses.
            said = str(error.message).replace(self._key, "…")[:300]
            raise ConfigError(f"{self._url} answered {error.status_code}: {said}{hint}") from error
        except self._errors.OpenAIError as error:
            raise ConfigError(f"{self._url} cannot be asked: {error} ({error.__cause__ or 'no further reason'})") from error
        except (AttributeError, IndexError, TypeError) as error:
            raise ConfigError(
                f"{self._url} gave no completion; is it the URL of an OpenAI-compatible server (…/v1)?"
            ) from error
        text = _with_reasoning(choice.message) if request.messages else choice.text
        # A lone half of a surrogate pair, which JSON can carry, can be neither printed nor stored.
        text = text.encode("utf-8", "replace").decode("utf-8")
        tokens = reply.usage.completion_tokens if reply.usage else None
        return TextResponse(text, tokens, choice.finish_reason == "length")

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _with_reasoning(message: Any) -> str:
    """The message's text; reasoning that the server parted from it is put back between <think> and </think>."""
    content = message.content or ""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if not isinstance(reasoning, str):
        return content
    return f"<think>\n{reasoning}\n</think>\n{content}" if content else f"<think>\n{reasoning}"
