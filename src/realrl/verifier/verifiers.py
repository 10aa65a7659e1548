"""The verifiers: plain functions of strings that decide whether an answer is correct. Free of torch."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from realrl.types import Verdict
from realrl.verifier.equivalence import compare, number
from realrl.verifier.extract import ExtractionPolicy, extract_answer, last_boxed
from realrl.verifier.latex import normalise, plain_words

# Longer answers (characters) are wrong.
MAX_ANSWER = 2000
# Longer or more deeply nested answers do not reach math-verify's computer algebra.
_MAX_SYMBOLIC = 400
_MAX_NESTING = 15

# Python code: a call, an attribute, a dunder name or a keyword.
_CODE = re.compile(
    r"__|\b(?!(?:sqrt|sin|cos|tan|log|exp|abs)\()[A-Za-z_]\w*\(|[A-Za-z_)\]'\"]\.[A-Za-z_]|\b(?:lambda|import|exec|eval)\b"
)

# Text that is not a gold answer: nothing, question marks, a picture.
_NO_GOLD = re.compile(r"[\s?？.…]*|<\s*(?:image|img|audio|video)[^>]*>.*", re.IGNORECASE | re.DOTALL)

_NO_ANSWER = Verdict("no_answer", None, "no final answer found", "extraction")


def extracted(response: str, policy: ExtractionPolicy) -> Verdict | str:
    """The final answer, or a verdict if there is none or it is too long."""
    answer = extract_answer(response, policy)
    if answer is None:
        return _NO_ANSWER
    if len(answer) > MAX_ANSWER:
        return Verdict("wrong", answer[:200], f"longer than {MAX_ANSWER} characters", "extraction")
    return answer


def exact_number(text: str) -> Fraction | None:
    r"""The exact value if the answer is one rational number (`025`, `32,348`, `\$5`, `2^{10}`, `18 eggs`), else None."""
    return number(text) if len(text) <= MAX_ANSWER else None


def verify_integer(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Verdict:
    """Correct if the extracted answer equals a gold integer; `grader_error` if a gold is not an integer."""
    wanted = [exact_number(gold) for gold in golds]
    if any(value is None or value.denominator != 1 for value in wanted):
        return Verdict("grader_error", None, f"the gold answer {golds[0][:50]!r} is not an integer; use reward.type = 'math'")
    answer = extracted(response, policy)
    if isinstance(answer, Verdict):
        return answer
    value = exact_number(answer)
    if value is None:
        return Verdict("wrong", answer, "not a number", "exact")
    right = value in wanted
    return Verdict("correct" if right else "wrong", answer, "equal integers" if right else "another number", "exact")


def verify_text(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Verdict:
    """Correct if the extracted answer has the same text as a gold, except for spaces, case and LaTeX text commands."""
    answer = extracted(response, policy)
    if isinstance(answer, Verdict):
        return answer
    right = plain_words(normalise(answer)) in {plain_words(normalise(gold)) for gold in golds}
    return Verdict("correct" if right else "wrong", answer, "equal text" if right else "another text", "text")


_CHOICE_WORDS = re.compile(
    r"^(?:(?:the|my|final|correct|right|answers?|options?|choices?|letters?|is|are)\b[\s:]*)+", re.IGNORECASE
)
_LETTER = r"[(\[{]?\s*[A-Z]\s*[)\]}]?"
_LETTERS = re.compile(rf"{_LETTER}(?:(?:\s*[,;&+]\s*(?:and\s+)?|\s+and\s+|\s+){_LETTER})*")
# A letter and the text of its choice: "C. 12", "(C) the cat", "C: 12", "C 12".
_LETTER_AND_TEXT = re.compile(r"(?:[(\[]\s*([A-Z])\s*[)\]]|([A-Z])\s*(?:[).:]|\s-|\s(?=[\d\\$+-])))\s*\S.*", re.DOTALL)
_TWO_CHOICES = re.compile(r"[(\[]?\s*[A-Z]\s*[)\]]?\s*(?:[,;&]|or\b|and\b)")


def choices(text: str) -> frozenset[str]:
    """The letters that an answer chooses, in upper case; empty if it chooses nothing or offers alternatives ("A or B")."""
    plain = re.sub(r"[⟦⟧*]", " ", normalise(text)).strip()
    plain = _CHOICE_WORDS.sub("", plain).strip(" .:")
    if re.fullmatch(r"\(?[a-z]\)?", plain):
        plain = plain.upper()
    if _LETTERS.fullmatch(plain):
        return frozenset(re.findall(r"[A-Z]", plain))
    if (found := _LETTER_AND_TEXT.fullmatch(plain)) and not _TWO_CHOICES.match(plain):
        return frozenset(found[1] or found[2])
    # Several different letters in alphabetical order: "BD".
    return frozenset(plain) if re.fullmatch(r"[A-J]{2,6}", plain) and list(plain) == sorted(set(plain)) else frozenset()


def verify_choice(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Verdict:
    """Correct if the extracted answer chooses exactly the gold's letters (`C`, `(C)`, `C. 12`, `B and D`)."""
    wanted = [choices(gold) for gold in golds]
    if not all(wanted):
        return Verdict("grader_error", None, f"the gold answer {golds[0][:50]!r} is not a choice; use reward.type = 'math'")
    answer = extracted(response, policy)
    if isinstance(answer, Verdict):
        return answer
    chosen = choices(answer)
    if not chosen:
        return Verdict("wrong", answer, "no letter of a choice", "text")
    right = chosen in wanted
    return Verdict("correct" if right else "wrong", answer, "the choice" if right else "another choice", "text")


def verify_regex(answer: str, golds: Sequence[str]) -> Verdict:
    """Correct if the whole answer matches a gold regular expression; runs in a worker, because a pattern may hang."""
    right = any(re.fullmatch(gold, answer) for gold in golds)
    return Verdict("correct" if right else "wrong", answer, "matches" if right else "does not match", "regex")


def quick_math(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Verdict | tuple[Any, ...]:
    """A verdict if none needs computer algebra, else the item for `verify_symbolic`."""
    if all(_NO_GOLD.fullmatch(gold) for gold in golds):
        return Verdict("grader_error", None, f"the gold answer {golds[0][:50]!r} is not an answer; drop the row", "bounds")
    answer = extracted(response, policy)
    if isinstance(answer, Verdict):
        return answer
    open_golds = []
    stages = []
    for gold in golds:
        gold = last_boxed(gold) or gold
        equal, stage = compare(answer, gold[:MAX_ANSWER])
        if equal:
            return Verdict("correct", answer, "the same answer", stage)
        stages.append(stage)
        if equal is None:
            open_golds.append(gold)
    if not open_golds:
        return Verdict("wrong", answer, "another answer", stages[0])
    return answer, tuple(open_golds)


def verify_symbolic(answer: str, golds: Sequence[str]) -> Verdict:
    """Compare with math-verify, if the answers are short and flat enough for it; runs in a worker."""
    for text in (answer, *golds):
        if problem := _unfit(text):
            return Verdict("wrong" if text == answer else "grader_error", answer[:200], problem, "bounds")
    from math_verify import parse, verify

    got = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not got:
        return Verdict("wrong", answer, "the answer cannot be parsed", "symbolic")
    unread = 0
    for gold in golds:
        want = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        unread += not want
        if want and verify(want, got, float_rounding=12, numeric_precision=30, timeout_seconds=None):
            return Verdict("correct", answer, "math-verify", "symbolic")
    if unread == len(golds):
        return Verdict("grader_error", answer, f"the gold answer {golds[0][:50]!r} cannot be parsed", "symbolic")
    return Verdict("wrong", answer, "math-verify", "symbolic")


def _unfit(text: str) -> str:
    """The reason why a text must not reach the computer algebra, or an empty string."""
    if len(text) > _MAX_SYMBOLIC:
        return f"longer than {_MAX_SYMBOLIC} characters"
    depth = deepest = 0
    for symbol in text:
        depth += (symbol in "({[") - (symbol in ")}]")
        deepest = max(deepest, depth)
    if deepest > _MAX_NESTING:
        return f"nested deeper than {_MAX_NESTING}"
    if re.search(r"\d{60}|\d{4,}\s*[)}\]]*\s*!|\^[^+\-*/,]*\^|\^\s*\{?[-(\s]*\d{4,}|\)\s*!", text):
        return "numbers too large"
    return ""


def verify_json(response: str, golds: Sequence[str]) -> Verdict:
    """Correct if the response's JSON matches a gold JSON schema; runs in a worker, because a pattern may hang.

    The JSON is the last fenced block, or else all text after `</think>`. References in a schema are never fetched.
    """
    from jsonschema import Draft202012Validator, SchemaError, ValidationError
    from referencing import Registry

    visible = response.rpartition("</think>")[2]
    blocks = re.findall(r"```(?:json)?\s*\n(.*?)```", visible, re.DOTALL)
    text = (blocks[-1] if blocks else visible).strip()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return Verdict("no_answer", None, "no JSON found", "extraction")
    reason = ""
    for gold in golds:
        try:
            schema = json.loads(gold)
            Draft202012Validator.check_schema(schema)
            Draft202012Validator(schema, registry=Registry()).validate(document)
            return Verdict("correct", text[:MAX_ANSWER], "fits the schema", "json_schema")
        except ValidationError as error:
            reason = f"{error.json_path}: {error.message}"[:200]
        except (ValueError, SchemaError) as error:
            return Verdict("grader_error", None, f"the gold answer is not a JSON schema: {error}"[:200], "json_schema")
    return Verdict("wrong", text[:MAX_ANSWER], reason, "json_schema")


def verify_reasoning_gym(answer: str, golds: Sequence[str]) -> Verdict:
    """The score in [0, 1] from reasoning-gym's own scorer; a gold is one of its entries as JSON. Runs in a worker.

    Some of these scorers pass the answer to sympy's parser, which evaluates it. An answer that could call code is wrong.
    """
    if _CODE.search(answer):
        return Verdict("wrong", answer[:200], "looks like code, so the scorer does not get it", "bounds")
    from reasoning_gym import get_score_answer_fn  # pyright: ignore[reportMissingImports]

    best = 0.0
    for gold in golds:
        try:
            entry = json.loads(gold)
            scorer: Any = get_score_answer_fn(entry["metadata"]["source_dataset"])
        except (ValueError, KeyError, TypeError) as error:
            return Verdict("grader_error", None, f"the gold answer is not a reasoning-gym entry: {error!r}"[:200])
        best = max(best, float(scorer(answer, entry)))
    return Verdict("correct" if best == 1 else "wrong", answer, f"reasoning-gym: {best:g}", "reasoning_gym", score=best)


@functools.cache
def load_function(path: str) -> Callable[..., Any]:
    """Load the user's function "module:name"; raises the errors of its import, and TypeError if it is not callable."""
    module, _, name = path.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{path} is a {type(function).__name__}, not a function")
    return function


def verify_by_function(path: str, response: str, golds: Sequence[str]) -> Verdict:
    """The best score of a user's `function(response, answer)` over all golds.

    The function may be async; it returns a bool or a score in [0, 1]."""
    function = load_function(path)
    best = 0.0
    for gold in golds:
        result = function(response, gold)
        if inspect.isawaitable(result):
            import asyncio  # slow to import and rarely needed

            result = asyncio.run(_awaited(result))
        score = float(result)
        if not 0 <= score <= 1:
            return Verdict("grader_error", None, f"{path} returned {score}; a score must be in [0, 1]", "function")
        best = max(best, score)
    return Verdict("correct" if best == 1 else "wrong", None, f"{path}: {best:g}", "function", score=best)


async def _awaited(result: Any) -> Any:
    return await result


def verify_math_verify(response: str, golds: Sequence[str]) -> Verdict:
    """math-verify with its defaults, for comparison."""
    from math_verify import parse, verify

    got = parse(response, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    for gold in golds:
        text = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
        want = parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        if verify(want, got, timeout_seconds=None):
            return Verdict("correct", str(got[0]), "math-verify", "math-verify")
    return Verdict("wrong" if got else "no_answer", str(got[0]) if got else None, "math-verify", "math-verify")


def verify_deepscaler(response: str, golds: Sequence[str]) -> Verdict:
    """The rules of DeepScaleR's reward, for comparison: only a box after `</think>`; equal after normalisation, or by items.

    If an item's gold is not an integer or a fraction, its value is compared; our own evaluation replaces computer algebra.
    """
    answer = extracted(response, ExtractionPolicy(require_boxed=True, require_think_close=True))
    if isinstance(answer, Verdict):
        return answer
    for gold in golds:
        left, right = (re.sub(r"\s+|[$%°]|⟦[^⟧]*⟧", "", normalise(text)) for text in (answer, last_boxed(gold) or gold))
        items = [text.strip("()[]").split(",") if "," in text else [text] for text in (left, right)]
        brackets = [(text[:1] + text[-1:]) if "," in text else "" for text in (left, right)]
        alike = len(items[0]) == len(items[1]) and brackets[0] == brackets[1]
        if left == right or (alike and all(map(_same_item, *items))):
            return Verdict("correct", answer, "DeepScaleR's rules", "deepscaler")
    return Verdict("wrong", answer, "DeepScaleR's rules", "deepscaler")


def _same_item(answer: str, gold: str) -> bool:
    if re.fullmatch(r"-?\d+(?:/\d+)?", gold):
        return answer == gold
    return compare(answer, gold)[0] is True
