"""Whatever a model writes gets a verdict: no crash, no hang, no code run. REALRL_CAMPAIGN=1 grades 100,000 answers."""

import itertools
import os
import resource
from collections import Counter

import forked
import pytest
from hostile_answers import CODE, CORPUS, stream
from hypothesis import given, settings
from hypothesis import strategies as st

from realrl.config import RewardSection
from realrl.rewards import build_grader, grade
from realrl.verifier.pool import VerifierPool
from realrl.verifier.verifiers import verify_reasoning_gym

CAMPAIGN = bool(os.environ.get("REALRL_CAMPAIGN"))
STATUSES = {"correct", "wrong", "no_answer", "grader_error"}
# Of a pool whose verifier ends by itself: no time of the clock decides, on a machine that is busy with something else.
PATIENCE_S = 3600.0


def test_the_stage_that_has_no_deadline_needs_none():
    """The trainer's own process decides most answers; there a hang would stop the run, and a crash end it."""
    pairs = [(f"\\boxed{{{text}}}", gold) for text in CORPUS for gold in ("12", text)]
    pairs += [(text * 300, "12") for text in CORPUS]
    pairs += itertools.islice(stream(0), 100_000 if CAMPAIGN else 200)
    pool = VerifierPool("hostile_answers:verify_quickly", workers=1, timeout_s=PATIENCE_S)
    try:
        graded = pool.grade(pairs)
    finally:
        pool.close()
    # A gold that is no answer is said to be one at once.
    failed = [
        (p, result)
        for p, result in zip(pairs, graded, strict=True)
        if result.status == "grader_error" and result.stage != "bounds"
    ]
    assert not failed
    if CAMPAIGN:
        slowest = sorted(zip(graded, pairs, strict=True), key=lambda item: -item[0].seconds)[:5]
        print(len(pairs), Counter(result.status for result in graded), [(r.seconds, p[0][:60]) for r, p in slowest])


def test_every_answer_has_a_verdict_within_the_deadline_and_the_memory(tmp_path):
    """In a small process of its own: what a child counts as its largest memory begins with that of its parent."""
    done = forked.run(grade_within_limits, str(tmp_path / "canary"))
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def grade_within_limits(canary):
    texts = [*CORPUS, *(code.format(canary=canary) for code in CODE)] if CAMPAIGN else CORPUS[::6]
    responses = [f"\\boxed{{{text}}}" for text in texts]
    golds = ["12"] * len(responses)
    if CAMPAIGN:
        more, theirs = zip(*itertools.islice(stream(1), 20_000), strict=True)
        responses, golds = [*responses, *more], [*golds, *theirs]
    with build_grader(RewardSection(timeout_s=5 if CAMPAIGN else 1, memory_mib=1024)) as grader:
        verdicts = grader.score(responses, golds)
    assert len(verdicts) == len(responses) and {verdict.status for verdict in verdicts} <= STATUSES
    assert not os.path.exists(canary)
    # The largest child so far, in KiB: address space is limited, and what is resident is no more.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 1024 * 1024
    if CAMPAIGN:
        print(Counter(v.status for v in verdicts), Counter(v.reason[:30] for v in verdicts if v.status == "grader_error"))


@pytest.mark.parametrize(
    "verifier", ["verify_symbolic", "verify_math_verify", "verify_deepscaler", "verify_json", "verify_regex"]
)
def test_no_grader_runs_an_answer_as_code(tmp_path, verifier):
    """Each text as answer and, as data may come from anywhere, as gold; also where math-verify hands it to sympy."""
    canary = tmp_path / "canary"
    code = [text.format(canary=canary) for text in CODE]
    answers = code if verifier in ("verify_symbolic", "verify_regex") else [f"\\boxed{{{text}}}" for text in code]
    pairs = [(answer, "12") for answer in answers] + [("12", gold) for text in code for gold in (text, f"${text}$")]
    pool = VerifierPool(f"realrl.verifier.verifiers:{verifier}", workers=1, timeout_s=PATIENCE_S)
    try:
        graded = pool.grade([(answer, (gold,)) for answer, gold in pairs])
    finally:
        pool.close()
    assert {result.status for result in graded} <= STATUSES and not canary.exists()


def test_code_would_be_seen(tmp_path):
    """The canary's control: sympy's own parser does run what it is given."""
    from sympy.parsing import parse_expr

    canary = tmp_path / "canary"
    parse_expr(CODE[0].format(canary=canary))
    assert canary.exists()


def test_nothing_that_looks_like_code_reaches_reasoning_gyms_scorers(tmp_path):
    for text in CODE:
        if "open(" in text or "__import__" in text:
            assert verify_reasoning_gym(text.format(canary=tmp_path / "canary"), ("{}",)).stage == "bounds", text


@pytest.mark.parametrize("type", ["exact_integer", "exact_match", "multiple_choice"])
def test_the_plain_verifiers_take_any_answer_and_any_gold(type):
    texts = (*CORPUS, *(text for pair in itertools.islice(stream(2), 20_000 if CAMPAIGN else 100) for text in pair))
    for text in texts:
        assert grade(f"\\boxed{{{text}}}", "12", type=type).status in STATUSES
        assert grade("\\boxed{12}", text or " ", type=type).status in STATUSES


@given(st.text(max_size=300), st.text(max_size=300))
@settings(max_examples=5000 if CAMPAIGN else 60, deadline=None)
def test_any_text_has_a_verdict(response, gold):
    assert grade(response, gold).status in STATUSES


def test_a_long_run_of_one_piece_is_read_in_one_pass():
    pieces = [
        " ",
        "\n",
        "answer ",
        "1 ",
        "I hope it is correct. ",
        *[r"$", r"{", r"\boxed{", r"answer:", r"####", r"\text{", r"~", r"*", r"{,}"],
    ]
    pool = VerifierPool("hostile_answers:verify_a_long_run", workers=1, timeout_s=PATIENCE_S)
    try:
        graded = pool.grade([(piece * (300_000 // len(piece)),) for piece in pieces])
    finally:
        pool.close()
    assert [(piece, result.reason) for piece, result in zip(pieces, graded, strict=True) if result.status != "read"] == []
