"""What decides whether an answer is right; plain functions of strings that import no torch."""

from __future__ import annotations

import re
from fractions import Fraction

from realrl.rewards.extract import extract_answer

_DECORATION = re.compile(r"\\[,;! ]|\\left|\\right|\\text\s*|\\mathrm\s*|[$\s{}]|\\\$|\\%|%")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_GROUPED = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")
# int() of a longer text is refused by Python itself and no answer needs it.
_MAX_DIGITS = 4000
# math-verify meets no longer text than this; an answer is short.
_MAX_ANSWER = 10_000


def exact_number(text: str) -> Fraction | None:
    r"""The value of a decimal integer or decimal fraction, exactly (`025`, `+7`, `32,348`, `\$5`, `12.0`, `42.`); else None."""
    if len(text) > _MAX_DIGITS:
        return None
    plain = _DECORATION.sub("", text).rstrip(".").replace("−", "-")
    if _GROUPED.fullmatch(plain):
        plain = plain.replace(",", "")
    return Fraction(plain) if _NUMBER.fullmatch(plain) else None


def judge_integer(response: str, gold: str) -> tuple[str, str | None, str]:
    """Right where the extracted answer is the gold integer; `grader_error` where the gold is none."""
    want = exact_number(gold)
    if want is None or want.denominator != 1:
        return "grader_error", None, f"the gold answer {gold[:50]!r} is not an integer; use reward.type = 'math'"
    answer = extract_answer(response)
    if answer is None:
        return "no_answer", None, "no boxed answer, 'answer is' or '####'"
    value = exact_number(answer)
    if value is None:
        return "wrong", answer, "not a number"
    return ("correct", answer, "equal integers") if value == want else ("wrong", answer, "another number")


def quick_math(response: str, gold: str) -> tuple[str, str | None, str] | None:
    """What can be decided without a computer-algebra system: no answer, equal text, exact numbers; None: undecided."""
    answer = extract_answer(response)
    if answer is None:
        return "no_answer", None, "no boxed answer, 'answer is' or '####'"
    if _DECORATION.sub("", answer) == _DECORATION.sub("", gold):
        return "correct", answer, "equal text"
    value, want = exact_number(answer), exact_number(gold)
    if value is not None and want is not None:
        return ("correct", answer, "equal numbers") if value == want else ("wrong", answer, "another number")
    if len(answer) > _MAX_ANSWER:
        return "wrong", answer[:200], f"longer than {_MAX_ANSWER} characters"
    return None


def judge_math(response: str, gold: str) -> tuple[str, str | None, str]:
    """Mathematical equivalence by math-verify; runs in a worker of the pool, which owns the deadline."""
    decided = quick_math(response, gold)
    if decided is not None:
        return decided
    from math_verify import parse, verify

    answer = extract_answer(response) or ""
    want = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    got = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not want:
        return "grader_error", answer, f"the gold answer {gold[:50]!r} cannot be parsed"
    if not got:
        return "wrong", answer, "the answer cannot be parsed"
    equal = verify(want, got, timeout_seconds=None)
    return ("correct", answer, "math-verify") if equal else ("wrong", answer, "math-verify")
