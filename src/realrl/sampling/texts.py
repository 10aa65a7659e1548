"""Evaluation with transformers: requests in batches through the trainer's own sampler."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from realrl.sampling.base import SamplingParams, TextRequest, TextResponse
from realrl.sampling.hf import HFSampler


class HFEngine:
    """Answers in batches of at most `params.batch_rows` rows; neighbouring requests of one prompt share its prefill."""

    def __init__(self, sampler: HFSampler, params: SamplingParams, device: torch.device) -> None:
        self._sampler = sampler
        self._params = params
        self._device = device

    def generate(self, requests: Sequence[TextRequest]) -> Iterator[list[tuple[int, TextResponse]]]:
        """Responses batch by batch, in the order of the requests."""
        for group_size, indices in self._batches(requests):
            rollouts = self._sampler.sample(
                [requests[index].token_ids for index in indices[::group_size]],
                group_size=group_size,
                params=self._params,
                generator=[torch.Generator(self._device).manual_seed(requests[index].seed) for index in indices],
            )
            yield [
                (index, TextResponse(rollout.text, len(rollout.token_ids), rollout.truncated))
                for index, rollout in zip(indices, rollouts, strict=True)
            ]

    def _batches(self, requests: Sequence[TextRequest]) -> Iterator[tuple[int, list[int]]]:
        """(samples of each prompt, indices of the requests): prompts that want equally many samples come together."""
        groups = [list(same) for _, same in itertools.groupby(range(len(requests)), lambda index: requests[index].token_ids)]
        for size, run in itertools.groupby(groups, len):
            alike = list(run)
            prompts_each = max(1, self._params.batch_rows // size)
            for first in range(0, len(alike), prompts_each):
                yield size, [index for group in alike[first : first + prompts_each] for index in group]

    def close(self) -> None:
        """Nothing to end."""
