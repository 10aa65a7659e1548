import itertools
import statistics

import pytest
import torch

from realrl.config import RewardSection
from realrl.eval import pass_at_k
from realrl.eval.passk import mean_and_standard_error
from realrl.eval.runner import evaluate
from realrl.rewards import build_verifier
from realrl.sampling import SamplingParams
from realrl.types import Problem, Prompt, Rollout


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1)])
def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_sample(n, c):
    for k in range(1, n + 1):
        subsets = list(itertools.combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize("arguments", [(5, 6, 1), (5, -1, 1), (5, 1, 0), (5, 1, 6)])
def test_pass_at_k_refuses_impossible_counts(arguments):
    with pytest.raises(ValueError, match="it needs"):
        pass_at_k(*arguments)


def test_standard_error_is_that_of_the_problem_means():
    mean, error = mean_and_standard_error([[1, 0], [1, 1], [0, 0]])
    assert mean == pytest.approx(0.5)
    assert error == pytest.approx(statistics.stdev([0.5, 1, 0]) / 3**0.5)
    assert mean_and_standard_error([[1, 0]]) == (0.5, 0.0)


class ScriptedSampler:
    """A sampler whose responses are known: `texts[prompt][sample]`; one token a character."""

    def __init__(self, texts, truncated=()):
        self.texts = texts
        self.truncated = truncated

    def sample(self, prompts, *, group_size, params, generator):
        return [
            Rollout(index, tuple(range(len(text))), (0.0,) * len(text), text, truncated=text in self.truncated)
            for index, _ in enumerate(prompts)
            for text in self.texts[index][:group_size]
        ]

    def update_weights(self, model):
        raise NotImplementedError


PROMPTS = [Prompt(Problem(f"p{i}", f"question {i}", answer), f"question {i}", (i + 1,)) for i, answer in enumerate(["7", "8"])]


def run_evaluate(sampler, samples):
    with build_verifier(RewardSection(type="exact_integer")) as grader:
        params = SamplingParams(temperature=1.0)
        return evaluate(sampler, PROMPTS, grader, samples=samples, params=params, generator=torch.Generator())


def test_evaluate_counts_what_was_sampled():
    texts = [[r"\boxed{7}", r"\boxed{9}", "hm", r"so \boxed{7}"], [r"\boxed{7}", "no idea", r"\boxed{8", "none"]]
    result = run_evaluate(ScriptedSampler(texts, truncated={r"\boxed{8", "hm", "none"}), samples=4)
    # Right: two of four for the first problem, none for the second.
    assert result.accuracy == pytest.approx((2 / 4 + 0 / 4) / 2)
    assert result.standard_error == pytest.approx(statistics.stdev([0.5, 0.0]) / 2**0.5)
    assert result.boxed_share == 4 / 8  # an unclosed box is none
    assert result.no_answer_share == 4 / 8
    assert result.truncated_share == 3 / 8
    assert result.mean_length == statistics.mean(len(text) for row in texts for text in row)
    assert [row["response"] for row in result.samples] == [*texts[0], *texts[1]]
    assert [row["id"] for row in result.samples] == ["p0"] * 4 + ["p1"] * 4
    row = result.samples[1]
    row.pop("reason")
    assert row == {
        "id": "p0",
        "problem": "question 0",
        "answer": "7",
        "response": r"\boxed{9}",
        "extracted": "9",
        "status": "wrong",
        "truncated": False,
        "tokens": 9,
    }


def test_evaluate_refuses_a_sampler_that_loses_rollouts():
    with pytest.raises(AssertionError, match="2 rollouts for 2 × 4"):
        run_evaluate(ScriptedSampler([["a"], ["b"]]), samples=4)
