"""Evaluation with vLLM, where it is installed: continuous batching, responses as they are done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from realrl.errors import ConfigError
from realrl.sampling.base import SamplingParams, TextRequest, TextResponse


class VLLMEngine:
    """An in-process vLLM engine. Raises ConfigError where vLLM is not installed or cannot load the model."""

    def __init__(self, model: str, params: SamplingParams, *, dtype: str, longest_prompt: int, seed: int) -> None:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        try:
            from vllm import EngineArgs, LLMEngine  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                f"--engine vllm needs vLLM, which is not importable here ({error}); pip install vllm, or use --engine hf"
            ) from error
        self._params = params
        try:
            self._engine: Any = LLMEngine.from_engine_args(
                EngineArgs(
                    model=model,
                    dtype=dtype,
                    max_model_len=longest_prompt + params.max_new_tokens,
                    max_num_seqs=params.batch_rows,
                    # On CPU vLLM fails where a seeded request's prompt is read in chunks.
                    enable_chunked_prefill=torch.cuda.is_available(),
                    seed=seed,
                )
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise ConfigError(f"vLLM cannot load {model!r}: {str(error).strip().splitlines()[0]}") from error

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]:
        """Responses in the order in which they are done."""
        from vllm import SamplingParams as VLLMParams  # pyright: ignore[reportMissingImports]

        for index, request in enumerate(requests):
            wanted = VLLMParams(
                temperature=self._params.temperature,
                top_p=self._params.top_p,
                top_k=self._params.top_k,
                max_tokens=self._params.max_new_tokens,
                seed=request.seed,
            )
            self._engine.add_request(str(index), {"prompt_token_ids": list(request.token_ids)}, wanted)
        while self._engine.has_unfinished_requests():
            done = [output for output in self._engine.step() if output.finished]
            if done:
                yield [(int(output.request_id), _response(output.outputs[0])) for output in done]

    def close(self) -> None:
        """Nothing to end: the engine goes with the process."""


def _response(output: Any) -> TextResponse:
    return TextResponse(output.text, len(output.token_ids), output.finish_reason == "length")
