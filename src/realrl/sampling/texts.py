"""The evaluation engine for transformers. It uses the trainer's own sampler."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

import torch

from realrl.models import load_model, load_tokenizer, too_long_for
from realrl.models.rotary import fix_rotary
from realrl.sampling.base import EngineOptions, TextRequest, TextResponse
from realrl.sampling.hf import HFSampler
from realrl.system.hardware import choose_device


class HFEngine:
    """Decodes at most `params.batch_rows` rows together. Consecutive requests with the same prompt share its prefill.

    Prints warnings about the model's context length on stderr.
    """

    def __init__(self, options: EngineOptions) -> None:
        torch.set_flush_denormal(True)  # as in training
        model = load_model(options.model, dtype=getattr(torch, options.dtype), device=choose_device("auto")).eval()
        longest = options.longest_prompt + options.params.max_new_tokens
        warnings = too_long_for(model, options.longest_prompt, options.params.max_new_tokens), fix_rotary(model, longest)
        for line in filter(None, warnings):
            print(f"realrl: {line}", file=sys.stderr)
        self._sampler = HFSampler(model, load_tokenizer(options.model), longest=longest)
        self._params = options.params

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]:
        """Responses in the order in which they finish."""
        groups = [list(same) for _, same in itertools.groupby(requests, lambda request: request.token_ids)]
        finished = self._sampler.stream(
            [group[0].token_ids for group in groups],
            sizes=[len(group) for group in groups],
            params=self._params,
            seeds=[request.seed for request in requests],
        )
        for done in finished:
            yield [(index, TextResponse(rollout.text, len(rollout.token_ids), rollout.truncated)) for index, rollout in done]

    def close(self) -> None:
        """Nothing to close."""
