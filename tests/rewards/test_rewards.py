import asyncio
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from patience import wait_until
from processes import is_gone

from realrl.config import RewardSection, parse_config
from realrl.errors import ConfigError
from realrl.rewards import build_grader, grade, verify
from realrl.types import Verdict
from realrl.verifier.extract import ExtractionPolicy, extract_answer, last_boxed
from realrl.verifier.pool import VerifierPool
from realrl.verifier.verifiers import verify_reasoning_gym


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
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"The solutions are $\boxed{x=1}$, $\boxed{x=2}$.", "x=1, x=2"),
        ("The answer is 5. I hope it is correct", "5"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("The answer is\n\\[\n9\n\\]", "9"),
        ("Adding, 3 + 4 = 7.", "7"),
        (r"Therefore $x = 3$.", "x = 3"),
        ("I tried 3 and gave up", None),
        ("There are 12 distinct sequences that meet the conditions. I hope it is correct.", "12"),
        ("so it's not 10, it's 1,000.99m²", "1,000.99"),
        ("Final Answer: Jane started growing Sphere 3 hours ago.", "3"),
        ("The answer is (7, 6).<|im_end|>\n<|im_start|>user\nand 8 + 8 = 16?", "(7, 6)"),
        (r"$y_1 = \boxed{1}$ and $y_2=\boxed{2}$", "1, 2"),
        (r"\boxed{}", None),
        ("", None),
        ("So the total is **73**.", "73"),
        ("So there are **73 eggs** for the 3 kids.", "73"),
        ("Half of it is `x^2/2`.", "x^2/2"),
        ("`73`", "73"),
        ("**3.** Next, we need the area.", None),
        ("<answer>73</answer>", "73"),
        ("<answer>\n\\frac{1}{2}\n</answer>\nI hope that helps with the 3 others.", "\\frac{1}{2}"),
        ("<answer>The answer is $x$</answer>", "x"),
        ("So she pays $18.", "18"),
        ("She earns $5 a day and pays $18.", None),
        ("First she has 5 eggs. It takes 18 minutes.", "18"),
        ("It takes 18 minutes for 3 eggs.", None),
        ("#### 18 eggs", "18 eggs"),
        ("Answer: 18 cookies", "18 cookies"),
        ("I cannot solve problem 3", None),
        ("That leaves step 4.", None),
        ("Is it 5?", None),
        ("She sells each for $5.", None),
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
        ("12", "12", "correct"),
        ("no idea", "12", "no_answer"),
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
        r"\boxed{10^{10^{10}}}",
        r"\boxed{9^{9^{9^9}}}",
        r"\boxed{(10^9)!}",
        r"\boxed{\sum_{k=1}^{10^{9}} k!}",
        r"\boxed{\int_0^1 x^{x^{x^{x}}} dx}",
        r"\boxed{__import__('os').system('touch /tmp/realrl_was_here')}",
        r"\boxed{" + "1+" * 900 + "1}",
        r"\boxed{" + "-" * 1900 + "1}",
        r"\boxed{" + r"\frac" * 380 + "}",
        r"\boxed{" + "!" * 1900 + "}",
        r"\boxed{3" + "!" * 8 + "}",
        r"\boxed{" + "2^" * 900 + "2}",
    ],
)
def test_hostile_text_gets_a_verdict(response):
    assert verify(response, "12") is False


def test_workers_do_not_import_torch():
    code = "import sys, realrl.verifier.pool, realrl.verifier.verifiers; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_hanging_or_dying_worker_costs_its_own_item_only():
    pool = VerifierPool("pool_verifiers:hang_or_die", workers=2, timeout_s=0.5)
    try:
        responses = ["a", "hang", "b", "die", "raise", "c", "hoard", "d"]
        done = []
        results = pool.grade([(text, text) for text in responses], done.append)
    finally:
        pool.close()
    assert done == sorted(done) and done[-1] == len(responses)
    assert [result.status for result in results] == [
        "correct",
        "grader_error",
        "correct",
        "grader_error",
        "grader_error",
        "correct",
        "grader_error",
        "correct",
    ]
    assert [result.extracted for result in results] == ["a", None, "b", None, None, "c", None, "d"]
    reasons = [result.reason for result in results]
    assert "within 0.5 s" in reasons[1] and "died" in reasons[3] and "ValueError" in reasons[4] and "MemoryError" in reasons[6]
    assert results[1].seconds >= 0.5


def test_workers_are_recycled():
    pool = VerifierPool("pool_verifiers:hang_or_die", workers=1, recycle=3)
    try:
        results = pool.grade([("a", "a")] * 7)
    finally:
        pool.close()
    workers = [result.reason for result in results]
    assert len(set(workers)) == 3 and workers[0] == workers[2] != workers[3] == workers[5] != workers[6]


def test_workers_end_with_their_parent():
    """The parent is killed while its worker hangs; the worker is gone soon after."""
    code = (
        "import os, threading\n"
        "from realrl.verifier.pool import VerifierPool\n"
        "pool = VerifierPool('pool_verifiers:hang_or_die', workers=1, timeout_s=600)\n"
        "threading.Thread(target=pool.grade, args=([('a', 'a'), ('hang', '')], lambda n: n and print(\n"
        "    pool._workers[0].process.pid, flush=True)), daemon=True).start()\n"
        "threading.Event().wait()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until(lambda: is_gone(worker), within_s=300)


def test_the_verdict_is_the_same_in_threads_processes_and_asyncio():
    """In each, one answer that is decided at once and one that needs a worker."""
    pairs = [(r"\boxed{\frac{2}{4}}", "0.5"), (r"\boxed{\sum_{k=1}^{3} k}", "6"), (r"\boxed{\sum_{k=1}^{3} k}", "7")]
    expected = [True, True, False]
    assert [verify(*pair) for pair in pairs] == expected
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(verify, *zip(*pairs, strict=True))) == expected

    async def together():
        return await asyncio.gather(*(asyncio.to_thread(verify, *pair) for pair in pairs))

    assert asyncio.run(together()) == expected
    # Pool's processes are daemonic, which may have no children of multiprocessing's own.
    for method in ("fork", "spawn") if sys.platform == "linux" else ("spawn",):
        with multiprocessing.get_context(method).Pool(1) as processes:
            assert processes.starmap(verify, pairs) == expected


def test_a_users_function_by_import_path():
    with build_grader(RewardSection(type="pool_verifiers:double")) as grader:
        assert [verdict.reward for verdict in grader.score(["aa", "a"], ["a", "a"])] == [1.0, 0.0]
    with build_grader(RewardSection(type="pool_verifiers:share")) as grader:
        assert [verdict.reward for verdict in grader.score(["ab", "aa", "bb"], ["a"] * 3)] == [0.5, 1.0, 0.0]
    with build_grader(RewardSection(type="pool_verifiers:share", threshold=0.5)) as grader:
        assert [verdict.reward for verdict in grader.score(["ab", "aa", "bb"], ["a"] * 3)] == [1.0, 1.0, 0.0]


def test_the_preference_level_follows_the_reward():
    """TRPA's pairs: a score above the threshold is no worse than an exact answer, a right one below it no better than wrong."""
    verdicts = [
        Verdict("correct"),
        Verdict("wrong", score=1.0),
        Verdict("correct", score=0.0),
        Verdict("wrong"),
        Verdict("no_answer"),
    ]
    assert [verdict.level for verdict in verdicts] == [2, 2, 1, 1, 0]


def test_format_rewards_and_labels():
    with build_grader(RewardSection(type="exact_integer", format_weight=0.2)) as grader:
        rewards = [verdict.reward for verdict in grader.score([r"\boxed{7}", "The answer is 7", r"\boxed{8}", "hm"], ["7"] * 4)]
    assert rewards == pytest.approx([1.0, 0.8, 0.2, 0.0])
    document = {"model": {"path": "m"}, "data": {"train": "d"}, "reward": {"format_weight": 0.2}}
    with pytest.raises(ConfigError, match="set reward.threshold, or choose an advantage-based objective"):
        parse_config(document)
    assert parse_config(document | {"objective": {"type": "grpo"}}).reward.format_weight == 0.2
    assert parse_config(document | {"reward": {"format_weight": 0.2, "threshold": 0.9}}).reward.threshold == 0.9


@pytest.mark.parametrize(
    ("type", "response", "gold", "status"),
    [
        ("exact_match", r"\boxed{\text{ New  York}}", "new york", "correct"),
        ("exact_match", r"\boxed{York}", "New York", "wrong"),
        ("multiple_choice", "The answer is (C).", "C", "correct"),
        ("multiple_choice", r"\boxed{C. 12}", "C", "correct"),
        ("multiple_choice", r"\boxed{D}", "C", "wrong"),
        ("multiple_choice", r"\boxed{Cats}", "C", "wrong"),
        *[
            ("multiple_choice", rf"\boxed{{{answer}}}", gold, "correct")
            for answer, gold in [
                ("Option C", "C"),
                (r"\text{Choice C}", "C"),
                ("Answer: C", "C"),
                ("[C]", "C"),
                ("c", "C"),
                (r"\textbf{(C)}", "C"),
                (r"C. $\frac12$", "(C)"),
                ("D. it can't be A or B", "D"),
                ("D", r"\text{D}"),
                ("C", "C. 12"),
                ("B, D", "BD"),
                ("BD", "B and D"),
                ("(B), (D)", "BD"),
            ]
        ],
        *[
            ("multiple_choice", rf"\boxed{{{answer}}}", "A", "wrong")
            for answer in ["A, B, C, D", "A or C", "(A) or (B)", "A good one is C", "AB", "B. A", "an answer", "12"]
        ],
        ("multiple_choice", r"\boxed{B}", "BD", "wrong"),
        ("multiple_choice", r"\boxed{A}", "12", "grader_error"),
        ("regex", r"\boxed{ab12}", r"[a-z]+\d+", "correct"),
        ("regex", r"\boxed{ab12!}", r"[a-z]+\d+", "wrong"),
        ("regex", r"\boxed{x}", "(", "grader_error"),
    ],
)
def test_other_verifiers(type, response, gold, status):
    assert grade(response, gold, type=type).status == status


def test_any_of_several_golds():
    assert verify(r"\boxed{\frac{1}{3}}", ["0.25", "1/3"])
    assert not verify(r"\boxed{\frac{1}{3}}", ["0.25", "2/3"])
    # A list needs all its items, in any order.
    assert verify(r"\boxed{84, 69}", "$69$,$84$")
    assert not verify(r"\boxed{84}", "$69$,$84$")


def test_policy():
    text = "thinking <think> 5 </think> The answer is 5."
    assert extract_answer(text) == "5"
    assert extract_answer(text, ExtractionPolicy(require_boxed=True)) is None
    closed = ExtractionPolicy(require_think_close=True)
    assert extract_answer(r"\boxed{5}", closed) is None
    assert extract_answer(r"</think>\boxed{5}", closed) == "5"
    assert extract_answer("so x = 5.") == "5"
    for text in ("so x = 5.", "So she pays $18.", "So the total is **73**.", "`73`"):
        assert extract_answer(text, ExtractionPolicy(bare_answers=False)) is None
    for text in ("<answer>73</answer>", "So the total is **73**.", "It takes 18 minutes."):
        assert extract_answer(text, ExtractionPolicy(require_boxed=True)) is None


def test_unknown_verifier_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean math"):
        build_grader(RewardSection(type="maths"))


SCHEMA = json.dumps({"type": "object", "required": ["x"], "properties": {"x": {"type": "integer"}}})


@pytest.mark.parametrize(
    ("response", "gold", "status"),
    [
        ('{"x": 3}', SCHEMA, "correct"),
        ('<think>{"x": "no"}</think>so\n```json\n{"x": 3}\n```\nas asked', SCHEMA, "correct"),
        ('{"x": "3"}', SCHEMA, "wrong"),
        ("x is 3", SCHEMA, "no_answer"),
        ("[" * 100_000, SCHEMA, "no_answer"),
        ('{"x": 3}', '{"type": "nothing"}', "grader_error"),
        ('{"x": 3}', "{", "grader_error"),
        ('"' + "a" * 40 + '!"', '{"pattern": "^(a+)+$"}', "grader_error"),  # a pattern that never ends costs its own answer
        ('{"x": 3}', '{"$ref": "http://127.0.0.1:9/schema.json"}', "grader_error"),
    ],
)
def test_json_is_held_against_a_schema(response, gold, status):
    with build_grader(RewardSection(type="json_schema", timeout_s=2, workers=1)) as grader:
        verdict = grader.score([response], [gold])[0]
    assert verdict.status == status, verdict


ENTRY = json.dumps({"question": "2+2", "answer": "4", "metadata": {"source_dataset": "basic_arithmetic"}})


@pytest.mark.skipif(importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed")
def test_reasoning_gym_scores_its_own_tasks():
    with build_grader(RewardSection(type="reasoning_gym", workers=1, timeout_s=60, memory_mib=4096)) as grader:
        verdicts = grader.score([r"\boxed{4}", r"\boxed{5}", "no", r"\boxed{4}"], [ENTRY, ENTRY, ENTRY, "{}"])
    assert [verdict.status for verdict in verdicts] == ["correct", "wrong", "no_answer", "grader_error"]


@pytest.mark.parametrize("text", ["__import__('os').system('id')", "preview(x)", "().a.b", "S('1')", "lambda: 1", "exec 1"])
def test_what_could_be_run_is_not_handed_to_reasoning_gym(text):
    assert verify_reasoning_gym(text, [ENTRY]).stage == "bounds"


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'realrl\[reasoning-gym\]'"):
        build_grader(RewardSection(type="reasoning_gym"))
