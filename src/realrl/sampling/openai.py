"""Evaluation through a server with OpenAI's interface: vLLM, SGLang, llama.cpp, `transformers serve`, hosted models."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from realrl.errors import ConfigError, SamplingError
from realrl.sampling.base import EngineOptions, TextRequest, TextResponse

# Seconds to wait for a connection.
_CONNECT_S = 20.0
# Seconds before a retry after a reply without a completion: the first delay, which doubles each time, and the largest one.
_BACKOFF_S = 0.5, 8.0
_SEED_BITS = 31


class EndpointEngine:
    """Sends up to `concurrency` requests at the same time to `endpoint`. The API key comes only from OPENAI_API_KEY.

    A request is retried up to `retries` times if the server refuses it (429) or it fails (5xx, connection, a reply without a
    completion), with exponential backoff or the server's Retry-After. A response may take `timeout_s` seconds; the default
    allows 8,192 tokens at 5 tokens a second. A request without messages goes to /completions, any other to /chat/completions.
    """

    def __init__(self, options: EngineOptions) -> None:
        if not options.endpoint:
            raise ConfigError("the engine openai needs a server: give --endpoint URL")
        try:
            import openai
        except ImportError as error:
            raise ConfigError("--endpoint needs the openai client: pip install 'realrl[endpoint]'") from error
        self._errors: Any = openai
        self._key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client: Any = openai.OpenAI(
            base_url=options.endpoint,
            api_key=self._key,
            max_retries=options.retries,
            timeout=openai.Timeout(options.timeout_s, connect=min(_CONNECT_S, options.timeout_s)),
        )
        self._url, self._model, self._params = options.endpoint, options.model, options.params
        self._concurrency, self._retries, self._timeout_s = options.concurrency, options.retries, options.timeout_s

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]:
        """Responses in the order in which they finish.

        After the last retry of a request fails, running requests are still finished and given, and then the error is raised:
        ConfigError for a request that the server does not accept, otherwise SamplingError. A server that answers nothing for
        twice `timeout_s` is a SamplingError, too.
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

        # Daemons: an interrupted evaluation does not wait for running requests.
        workers = [threading.Thread(target=work, daemon=True) for _ in range(self._concurrency)]
        for worker in workers:
            worker.start()
        failure: Exception | None = None
        working = len(workers)
        while working:
            try:
                # The client's own timeout does not end a connection that sends a byte now and then, and it allows retries.
                result = results.get(timeout=2 * self._timeout_s)
            except queue.Empty:
                failed.set()
                silence = 2 * self._timeout_s
                failure = failure or SamplingError(
                    f"{self._url} has answered none of {working} requests for {silence:g} s; check the server, or give a slow "
                    "one more time with --timeout"
                )
                break
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
        last = ""
        first, longest = _BACKOFF_S
        for attempt in range(self._retries + 1):
            if attempt:
                time.sleep(min(first * 2 ** (attempt - 1), longest))
            reply: Any = None
            try:
                if request.messages:
                    reply = self._client.chat.completions.create(messages=list(request.messages), **settings)
                else:
                    reply = self._client.completions.create(prompt=request.text, **settings)
                return _response(reply, chat=bool(request.messages))
            except self._errors.APIStatusError as error:
                code = error.status_code
                hint = "; set OPENAI_API_KEY in the environment" if code in (401, 403) else ""
                kind = SamplingError if code == 429 or code >= 500 else ConfigError
                # The server's message may contain the key.
                said = str(error.message).replace(self._key, "…")[:300]
                raise kind(f"{self._url} answered {code}: {said!r}{hint}") from error
            except self._errors.OpenAIError as error:
                reason = error.__cause__ or "no further reason"
                raise SamplingError(f"{self._url} cannot be reached: {error} ({reason})") from error
            except (AttributeError, LookupError, TypeError, ValueError) as error:
                last = str(getattr(error, "doc", error) if reply is None else reply)
        raise SamplingError(
            f"{self._url} gave no completion in {self._retries + 1} attempts, the last reply is {last[:200]!r}; is it the URL "
            "of an OpenAI-compatible server (…/v1)?"
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _response(reply: Any, *, chat: bool) -> TextResponse:
    """The response in a reply of any shape. Raises AttributeError, LookupError or TypeError if it is not a completion."""
    choice = reply.choices[0]
    text = _with_reasoning(choice.message) if chat else choice.text
    # JSON can carry half of a surrogate pair, which can be neither printed nor stored.
    text = text.encode("utf-8", "replace").decode("utf-8")
    tokens = getattr(reply.usage, "completion_tokens", None)
    return TextResponse(text, tokens if isinstance(tokens, int) else None, choice.finish_reason == "length")


def _with_reasoning(message: Any) -> str:
    """The message's text. If the server separates the reasoning from it, the reasoning is put back, in <think> tags."""
    content = message.content or ""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if not isinstance(reasoning, str):
        return content
    return f"<think>\n{reasoning}\n</think>\n{content}" if content else f"<think>\n{reasoning}"
