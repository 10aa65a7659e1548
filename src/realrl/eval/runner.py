"""Sample k responses to each problem, grade them, and say how accurate the model is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from realrl.eval.passk import mean_and_standard_error
from realrl.rewards import Grader, last_boxed
from realrl.sampling import Sampler, SamplingParams
from realrl.types import Prompt


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Pass@1 over all samples with its standard error over problems; shares of the responses; every sample as a row."""

    accuracy: float
    standard_error: float
    boxed_share: float
    no_answer_share: float
    truncated_share: float
    mean_length: float
    samples: list[dict[str, Any]]


def evaluate(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    grader: Grader,
    *,
    samples: int,
    params: SamplingParams,
    generator: torch.Generator,
) -> EvalResult:
    """`samples` responses to each prompt, graded. Rows come in the order of the prompts."""
    rollouts = sampler.sample([prompt.token_ids for prompt in prompts], group_size=samples, params=params, generator=generator)
    if len(rollouts) != samples * len(prompts):
        raise AssertionError(f"the sampler returned {len(rollouts)} rollouts for {len(prompts)} × {samples}")
    problems = [prompts[rollout.prompt_index].problem for rollout in rollouts]
    verdicts = grader.score([rollout.text for rollout in rollouts], [problem.golds for problem in problems])
    per_problem: list[list[float]] = [[] for _ in prompts]
    rows = []
    for rollout, problem, verdict in zip(rollouts, problems, verdicts, strict=True):
        per_problem[rollout.prompt_index].append(verdict.reward)
        rows.append(
            {
                "id": problem.id,
                "problem": problem.problem,
                "answer": problem.answer,
                "response": rollout.text,
                "extracted": verdict.extracted,
                "status": verdict.status,
                "reason": verdict.reason,
                "truncated": rollout.truncated,
                "tokens": len(rollout.token_ids),
            }
        )
    accuracy, standard_error = mean_and_standard_error(per_problem)
    count = len(rows)
    return EvalResult(
        accuracy=accuracy,
        standard_error=standard_error,
        boxed_share=sum(last_boxed(rollout.text) is not None for rollout in rollouts) / count,
        no_answer_share=sum(row["status"] == "no_answer" for row in rows) / count,
        truncated_share=sum(row["truncated"] for row in rows) / count,
        mean_length=sum(row["tokens"] for row in rows) / count,
        samples=rows,
    )
