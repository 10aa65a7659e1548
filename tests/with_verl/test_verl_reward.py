"""Our verifier as verl calls it: one response at a time, from many threads; needs no verl."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from realrl.errors import ConfigError
from realrl.integrations.verl import reward
from realrl.integrations.verl.reward import NoVerdictError, accepted_answers, compute_score, reward_section


@pytest.fixture(autouse=True)
def own_graders(monkeypatch):
    monkeypatch.setattr(reward, "_graders", {})
    yield
    for idle in reward._graders.values():
        while not idle.empty():
            idle.get().close()


def test_right_wrong_and_no_answer():
    ask = {"data_source": "math", "ground_truth": r"\frac{1}{2}", "extra_info": {"num_turns": 2}}
    assert compute_score(solution_str=r"so \boxed{0.5}", **ask) == {"score": 1.0, "acc": 1.0, "level": 2.0}
    assert compute_score(solution_str=r"so \boxed{0.4}", **ask) == {"score": 0.0, "acc": 0.0, "level": 1.0}
    assert compute_score(solution_str="no idea", **ask) == {"score": 0.0, "acc": 0.0, "level": 0.0}
    assert compute_score(solution_str="It is 0.5", **ask, require_boxed=True)["score"] == 0.0


def test_several_answers():
    for ground_truth in ('["3", "4"]', ["3", "4"], ("3", "4")):
        assert accepted_answers(ground_truth) == ("3", "4")
        assert compute_score("math", r"\boxed{4}", ground_truth)["score"] == 1.0
    # Lists and intervals are answers themselves.
    for ground_truth in ("[1, 2]", "[0, 1)", "[]", "7"):
        assert accepted_answers(ground_truth) == (ground_truth,)


def test_no_verdict_is_an_error_and_not_a_zero():
    with pytest.raises(NoVerdictError, match=r"'math'.*no verdict within 0\.5 s.*timeout_s"):
        compute_score("math", "anything", "7", type=f"{__name__}:hang", timeout_s=0.5)
    with pytest.raises(NoVerdictError, match="ZeroDivisionError"):
        compute_score("math", "anything", "7", type=f"{__name__}:fail")


def hang(response, answers):
    time.sleep(60)


def fail(response, answers):
    return 1 / 0


def test_threads_grade_side_by_side_and_each_gets_its_own_verdict():
    def ask(number):
        return compute_score("math", rf"\boxed{{\sqrt{{{number}}}+x}}", rf"x+\sqrt{{{number % 7}}}", workers=3)["score"]

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(21))) == [float(number < 7) for number in range(21)]
    (idle,) = reward._graders.values()
    assert idle.qsize() == 3


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match="requireboxed.*require_boxed"):
        reward_section({"requireboxed": True})
    with pytest.raises(ConfigError, match="timeout_s = -1"):
        compute_score("math", "x", "7", timeout_s=-1)
