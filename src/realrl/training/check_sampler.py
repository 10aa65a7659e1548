"""Whether the sampler and the model in training agree on the first rollouts."""

from __future__ import annotations

from realrl.config import Config
from realrl.errors import TrainingError
from realrl.models.precision import sampling_dtype, training_dtype
from realrl.training.batching import select_rows
from realrl.training.update import Update
from realrl.types import Batch

# Nats per token. In float32 a correct sampler stays below 1e-5; a wrong position or a missing layer gives more than 1.
SAMPLER_GAP = 0.1


def check_sampler(config: Config, batch: Batch, first: Update) -> None:
    """Compare the log-probabilities of the first update with the sampler's, where both are float32 and of the same weights.

    Raises TrainingError where they differ by more than SAMPLER_GAP on average.
    """
    if not training_dtype(config) == sampling_dtype(config) == "float32":
        return
    mini, report = select_rows(batch, first.rows), first.report
    counted_NT = report.computed_N[:, None] & mini.loss_mask
    gap = float((report.logprobs_NT - mini.logprobs_sampler)[counted_NT].abs().mean()) if bool(counted_NT.any()) else 0.0
    if gap > SAMPLER_GAP:
        raise TrainingError(
            f"the sampler and the model in training differ by {gap:.2g} nats a token on the first rollouts, both in float32 "
            "and of the same weights, so that every gradient would be wrong. Causes are an architecture whose cache, padding "
            "or row length changes its log-probabilities, noise in training mode (dropout, router jitter), or a sampling "
            "engine that reads other weights or another configuration; realrl check-model tries the model by itself"
        )
