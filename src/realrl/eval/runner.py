"""Grade generations, and compute accuracy with its uncertainty from them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float

from realrl.eval.intervals import interval, standard_error
from realrl.eval.passk import majority, pass_at_k
from realrl.eval.store import Generation
from realrl.rewards import Grader
from realrl.sampling import Sampler, SamplingParams
from realrl.seeding import derive_seed
from realrl.types import Problem, Prompt
from realrl.verifier.equivalence import compare
from realrl.verifier.extract import last_boxed

# A missed answer is searched in this many characters at the end of a response.
_TAIL = 200


@dataclass(frozen=True, slots=True)
class EvalResult:
    """Figures of one model on one data set, and every sample as a row (docs/evaluation.md).

    `accuracy` is Pass@1: the mean over problems of the mean over their `samples_each` samples. `standard_error` has two parts,
    `standard_error_samples` and `standard_error_problems` (None for one sample). `interval` contains 95 % of bootstrap
    resamples of the problems. Shares are of all responses; `mean_length` is in tokens.
    """

    problems: int
    samples_each: int
    accuracy: float
    standard_error: float
    standard_error_samples: float | None
    standard_error_problems: float | None
    interval: tuple[float, float]
    pass_at: dict[int, float]
    majority: float
    boxed_share: float
    no_answer_share: float
    grader_error_share: float
    answer_missed_share: float
    truncated_share: float
    mean_length: float | None
    samples: list[dict[str, Any]]

    def figures(self) -> dict[str, Any]:
        """Everything except the samples, for JSON."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "samples"}

    def problem_means(self) -> Float[np.ndarray, " P"]:
        """The share of right samples of each problem."""
        right = [row["status"] == "correct" for row in self.samples]
        return np.array(right, dtype=float).reshape(-1, self.samples_each).mean(axis=1)


def evaluate(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    grader: Grader,
    *,
    samples: int,
    params: SamplingParams,
    seed: int,
) -> EvalResult:
    """`samples` graded responses to each prompt. Rows come in the order of the prompts; every sample has a seed of its own."""
    rows = graded_rows(sampler, list(enumerate(prompts)), grader, samples=samples, params=params, seed=seed)
    return summarise(rows, samples)


def graded_rows(
    sampler: Sampler,
    prompts: Sequence[tuple[int, Prompt]],
    grader: Grader,
    *,
    samples: int,
    params: SamplingParams,
    seed: int,
) -> list[dict[str, Any]]:
    """`samples` graded responses to each of the numbered prompts, ordered by prompt, then by sample.

    The draws depend on a prompt's number, so that several processes may share the prompts of a data set.
    """
    rollouts = sampler.sample(
        [prompt.token_ids for _, prompt in prompts],
        group_size=samples,
        params=params,
        seeds=[derive_seed(seed, number, sample) for number, _ in prompts for sample in range(samples)],
    )
    problems = [prompt.problem for _, prompt in prompts]
    generations = [
        Generation(problems[r.prompt_index].id, index % samples, "", r.text, len(r.token_ids), r.truncated)
        for index, r in enumerate(rollouts)
    ]
    return _grade(problems, generations, grader, samples)


def grade_generations(
    problems: Sequence[Problem],
    generations: Sequence[Generation],
    grader: Grader,
    *,
    samples: int,
    progress: Callable[[int], None] | None = None,
) -> EvalResult:
    """Figures of `samples` generations of each problem, which come ordered by problem, then by sample.

    Raises AssertionError where the generations are not exactly those.
    """
    return summarise(_grade(problems, generations, grader, samples, progress), samples)


def _grade(
    problems: Sequence[Problem],
    generations: Sequence[Generation],
    grader: Grader,
    samples: int,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    expected = [(problem.id, sample) for problem in problems for sample in range(samples)]
    if [(generation.id, generation.sample) for generation in generations] != expected:
        raise AssertionError(f"got {len(generations)} generations; need those of {len(problems)} problems × {samples} samples")
    asked = [problem for problem in problems for _ in range(samples)]
    verdicts = grader.score([g.response for g in generations], [problem.golds for problem in asked], progress)
    rows = []
    for problem, generation, verdict in zip(asked, generations, verdicts, strict=True):
        rows.append(
            {
                "id": problem.id,
                "sample": generation.sample,
                "problem": problem.problem,
                "answer": problem.answer,
                "response": generation.response,
                "extracted": verdict.extracted,
                "status": verdict.status,
                "reason": verdict.reason,
                "stage": verdict.stage,
                "tokens": generation.tokens,
                "truncated": generation.truncated,
                "parser_error": verdict.status == "grader_error",
                "answer_missed": answer_missed(generation.response, problem.golds, verdict.status, verdict.extracted),
            }
        )
    return rows


def answer_missed(response: str, golds: Sequence[str], status: str, extracted: str | None) -> bool:
    """Whether a gold answer is a word near the response's end, although another answer, or none, was extracted."""
    if status not in ("no_answer", "wrong"):
        return False
    tail = response[-_TAIL:]
    missed = (gold.strip() for gold in golds if gold.strip() != extracted)
    return any(re.search(rf"(?<![\w.,/^-]){re.escape(gold)}(?![\w/^]|[.,]\d)", tail) for gold in missed)


def summarise(rows: Sequence[dict[str, Any]], samples: int) -> EvalResult:
    """Figures of graded rows, ordered by problem, then by sample."""
    right = np.array([row["status"] == "correct" for row in rows], dtype=float).reshape(-1, samples)
    means = right.mean(axis=1)
    error = standard_error(right)
    sizes = sorted({2**power for power in range(samples.bit_length())} | {samples})
    votes = [
        majority([row["extracted"] for row in group], [row["status"] == "correct" for row in group], same_answer)
        for group in (rows[first : first + samples] for first in range(0, len(rows), samples))
    ]
    lengths = [row["tokens"] for row in rows if row["tokens"] is not None]

    def share(flags: Sequence[bool]) -> float:
        return sum(flags) / len(rows)

    return EvalResult(
        problems=len(means),
        samples_each=samples,
        accuracy=float(means.mean()),
        standard_error=error.total,
        standard_error_samples=error.samples,
        standard_error_problems=error.problems,
        interval=interval([means]),
        pass_at={k: float(np.mean([pass_at_k(samples, int(c), k) for c in right.sum(axis=1)])) for k in sizes},
        majority=float(np.mean(votes)),
        boxed_share=share([last_boxed(row["response"]) is not None for row in rows]),
        no_answer_share=share([row["status"] == "no_answer" for row in rows]),
        grader_error_share=share([row["parser_error"] for row in rows]),
        answer_missed_share=share([row["answer_missed"] for row in rows]),
        truncated_share=share([row["truncated"] for row in rows]),
        mean_length=sum(lengths) / len(lengths) if lengths else None,
        samples=list(rows),
    )


def same_answer(a: str, b: str) -> bool:
    """Whether two answers are the same vote: equal for the verifier without computer algebra."""
    try:
        return compare(a, b)[0] is True
    except (RecursionError, ValueError, ArithmeticError):
        return False
