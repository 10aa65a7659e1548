"""Evaluation with transformers, through the trainer's own sampler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from realrl.sampling.base import SamplingParams, TextRequest, TextResponse
from realrl.sampling.hf import HFSampler


class HFEngine:
    """Decodes at most `params.batch_rows` rows together; neighbouring requests of one prompt share its prefill."""

    def __init__(self, sampler: HFSampler, params: SamplingParams) -> None:
        self._sampler = sampler
        self._params = params

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]:
        """Responses in the order in which they are done."""
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
        """Nothing to end."""
