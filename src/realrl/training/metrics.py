"""What a round did, as metrics and as rows of its rollouts; names and units are in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from realrl.training.update import Update
from realrl.types import Batch, Rollout, Verdict
from realrl.verifier.extract import last_boxed


def reward_metrics(batch: Batch, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """What the verdicts of a round say, and the lengths of its responses."""
    groups = [batch.rewards[batch.group_ids == group] for group in range(len(batch.prompts))]
    solved_all = sum(bool((rewards == 1).all()) for rewards in groups)
    solved_none = sum(bool((rewards == 0).all()) for rewards in groups)
    lengths = batch.loss_mask.sum(dim=1).float()
    count = len(rollouts)
    return {
        "reward/mean": float(batch.rewards.mean()),
        "reward/grader_errors": float(sum(verdict.status == "grader_error" for verdict in verdicts)),
        "groups/solved_all": solved_all / len(groups),
        "groups/solved_none": solved_none / len(groups),
        # From counts, because 1 − 1/3 − 2/3 is not exactly 0, and an alarm compares it with 0.
        "groups/mixed": (len(groups) - solved_all - solved_none) / len(groups),
        "format/boxed_share": sum(last_boxed(rollout.text) is not None for rollout in rollouts) / count,
        "format/no_answer_share": sum(verdict.status == "no_answer" for verdict in verdicts) / count,
        "response/length_mean": float(lengths.mean()),
        "response/length_max": float(lengths.max()),
        "response/truncated_share": sum(rollout.truncated for rollout in rollouts) / count,
    }


def update_metrics(batch: Batch, updates: Sequence[Update]) -> dict[str, float]:
    """Means over the rollouts whose gradient was computed, each taken just before its own update."""
    computed = torch.cat([update.rows[update.report.computed_N.cpu()] for update in updates])
    right = batch.rewards[computed] > 0

    def gather(name: str) -> torch.Tensor:
        return torch.cat([getattr(update.report, name)[update.report.computed_N] for update in updates])

    scores, weights = gather("scores_N"), gather("weights_N")
    gaps = torch.cat([_sampler_gap(batch, update) for update in updates])
    metrics = {
        "loss": sum(update.report.loss for update in updates) / len(updates),
        "grad/norm": max(update.grad_norm for update in updates),
        "policy/entropy": _mean(gather("entropy_N")),
        "policy/top1_share": _mean(gather("top1_N")),
        "score/positive_mean": _mean(scores[right]),
        "score/negative_mean": _mean(scores[~right]),
        "weight/abs_max": float(weights.abs().max()) if len(weights) else 0.0,
        "sampler/logprob_gap": _mean(gaps.abs()),
        "sampler/importance_max": float(gaps.exp().max()) if len(gaps) else 1.0,
        "compute/forwards": float(sum(update.forwards for update in updates)),
        "compute/backwards": float(sum(update.backwards for update in updates)),
        "compute/micro_batch_tokens": float(updates[-1].budget),
        "compute/rollouts_share": len(computed) / len(batch),
        "train/nonfinite": float(sum(not update.finite for update in updates)),
        "train/inert_updates": float(sum(update.inert for update in updates)),
    }
    last = updates[-1].report.metrics
    return metrics | {name: last[name] for name in last if name == "kl" or name.startswith("ratio/")}


def _sampler_gap(batch: Batch, update: Update) -> torch.Tensor:
    """log π_policy − log π_sampler of each computed token; empty for an update whose weights are not those that sampled."""
    if not update.on_policy:
        return torch.zeros(0)
    report = update.report
    rows = update.rows[report.computed_N.cpu()]
    width = report.logprobs_NT.shape[1]
    gap = report.logprobs_NT[report.computed_N] - batch.logprobs_sampler[rows, :width]
    return gap[batch.loss_mask[rows, :width]].cpu()


def _mean(values: torch.Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def rollout_rows(
    number: int, batch: Batch, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], updates: Sequence[Update]
) -> list[dict[str, Any]]:
    """The saved columns of round `number`: one row for each rollout (docs/metrics.md)."""
    score, weight = torch.zeros(len(batch)), torch.zeros(len(batch))
    for update in updates:
        score[update.rows] = update.report.scores_N.cpu()
        weight[update.rows] = update.report.weights_N.float().cpu()
    rows = []
    for index, (rollout, verdict) in enumerate(zip(rollouts, verdicts, strict=True)):
        prompt = batch.prompts[rollout.prompt_index]
        rows.append(
            {
                "step": number,
                "group": rollout.prompt_index,
                "problem_id": prompt.problem.id,
                "prompt": prompt.text,
                "response": rollout.text,
                "extracted": verdict.extracted,
                "answer": prompt.problem.answer,
                "verdict": verdict.status,
                "reason": verdict.reason,
                "reward": verdict.reward,
                "score": float(score[index]),
                "weight": float(weight[index]),
                "tokens": len(rollout.token_ids),
                "truncated": rollout.truncated,
            }
        )
    return rows


def token_columns(batch: Batch, updates: Sequence[Update]) -> list[dict[str, Any]]:
    """Each rollout's token ids, and log π_θ − log π_old of each token just before its own update."""
    log_ratio_NT = torch.zeros(batch.logprobs_sampler.shape)
    for update in updates:
        part = update.report.log_ratio_NT.float().cpu()
        # A mini-batch is as wide as its own longest response.
        log_ratio_NT[update.rows, : part.shape[1]] = part
    rows = zip(batch.response_ids.cpu(), log_ratio_NT, batch.loss_mask.cpu(), strict=True)
    return [
        {"token_ids": ids[mask].numpy().astype("int32"), "log_ratio": ratios[mask].numpy().astype("float16")}
        for ids, ratios, mask in rows
    ]
