import multiprocessing
import os
import subprocess
import sys

import pytest

from realrl.config import RewardSection
from realrl.errors import ConfigError
from realrl.rewards import build_verifier, extract_answer, grade, last_boxed, verify
from realrl.rewards.pool import JudgePool


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} then \boxed{2", "1"),
        (r"<think>\boxed{3}</think> The answer is 4.", "4"),
        ("work\n#### 72", "72"),
        ("The final answer is: **12**", "12"),
        ("nothing here", None),
        (r"\boxed{}", None),
        ("", None),
    ],
)
def test_extraction(text, answer):
    assert extract_answer(text) == answer


def test_extraction_is_linear_on_a_megabyte_of_unclosed_boxes():
    assert last_boxed("\\boxed{" * 150_000) is None
    assert last_boxed("{" * 1_000_000) is None


@pytest.mark.parametrize(
    ("response", "gold", "status"),
    [
        (r"\boxed{25}", "025", "correct"),
        (r"\boxed{32,348}", "32348", "correct"),
        (r"\boxed{\$32{,}348}", "32348", "correct"),
        (r"\boxed{12.0}", "12", "correct"),
        (r"\boxed{42.}", "42", "correct"),
        (r"\boxed{-3}", "-3", "correct"),
        (r"\boxed{1,2}", "12", "wrong"),
        (r"\boxed{12.5}", "12", "wrong"),
        (r"\boxed{x}", "12", "wrong"),
        ("12", "12", "no_answer"),
        (r"\boxed{" + "9" * 100_000 + "}", "12", "wrong"),
        (r"\boxed{1}", "x", "grader_error"),
    ],
)
def test_exact_integer(response, gold, status):
    assert grade(response, gold, type="exact_integer").status == status


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\dfrac{2}{4}", r"\frac12", True),
        ("x+1", "1+x", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        (r"\frac{1}{3}", r"\frac{1}{2}", False),
        (r"4\sqrt{2}", "4", False),
        ("100.005", "100", False),
        ("025", "25", True),
    ],
)
def test_math_equivalence(answer, gold, equal):
    assert verify(f"The answer is \\boxed{{{answer}}}.", gold) is equal


@pytest.mark.parametrize(
    "response",
    [
        "\x00",
        "\ud800 \\boxed{\ud800}",
        "\\boxed{" + "{" * 10_000 + "}" * 10_001,
        "\\boxed{" + "a" * 1_000_000 + "}",
        "",
    ],
)
def test_hostile_text_gets_a_verdict(response):
    assert verify(response, "12") is False


def test_workers_do_not_import_torch():
    code = "import sys, realrl.rewards.pool, realrl.rewards.judges; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def hang_or_die(response: str, gold: str):
    """A judge for the tests below; runs in the pool's workers."""
    if response == "hang":
        multiprocessing.Event().wait()
    if response == "die":
        os._exit(1)
    if response == "raise":
        raise ValueError("no")
    return ("correct" if response == gold else "wrong"), response, "test"


def test_a_hanging_or_dying_worker_costs_its_own_item_only():
    pool = JudgePool(f"{__name__}:hang_or_die", workers=2, timeout_s=0.5)
    try:
        responses = ["a", "hang", "b", "die", "raise", "c", "hang", "d"]
        results = pool.judge([(text, text) for text in responses])
    finally:
        pool.close()
    assert [status for status, _, _ in results] == [
        "correct",
        "grader_error",
        "correct",
        "grader_error",
        "grader_error",
        "correct",
        "grader_error",
        "correct",
    ]
    assert [extracted for _, extracted, _ in results] == ["a", None, "b", None, None, "c", None, "d"]
    assert "within 0.5 s" in results[1][2] and "died" in results[3][2] and "ValueError" in results[4][2]


def test_unknown_verifier_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean math"):
        build_verifier(RewardSection(type="maths"))
