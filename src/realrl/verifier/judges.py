"""What decides whether an answer is right; plain functions of strings that import no torch."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from realrl.verifier.equivalence import compare, number
from realrl.verifier.extract import ExtractionPolicy, extract_answer, last_boxed
from realrl.verifier.latex import normalise, plain_words
from realrl.verifier.pool import Judgement

# No answer is longer; what is longer is not read.
MAX_ANSWER = 2000
# The computer algebra of math-verify meets nothing past these.
_MAX_SYMBOLIC = 400
_MAX_NESTING = 15

# A call, an attribute, a dunder name or a keyword of Python.
_CODE = re.compile(
    r"__|\b(?!(?:sqrt|sin|cos|tan|log|exp|abs)\()[A-Za-z_]\w*\(|[A-Za-z_)\]'\"]\.[A-Za-z_]|\b(?:lambda|import|exec|eval)\b"
)

# A gold that is no answer: nothing, question marks, a picture.
_NO_GOLD = re.compile(r"[\s?？.…]*|<\s*(?:image|img|audio|video)[^>]*>.*", re.IGNORECASE | re.DOTALL)

_NO_ANSWER = Judgement("no_answer", None, "no final answer found", "extraction")


def extracted(response: str, policy: ExtractionPolicy) -> Judgement | str:
    """The final answer, or the judgement where there is none or it is too long."""
    answer = extract_answer(response, policy)
    if answer is None:
        return _NO_ANSWER
    if len(answer) > MAX_ANSWER:
        return Judgement("wrong", answer[:200], f"longer than {MAX_ANSWER} characters", "extraction")
    return answer


def exact_number(text: str) -> Fraction | None:
    r"""The value of an answer that is one rational number, exactly (`025`, `32,348`, `\$5`, `2^{10}`, `18 eggs`); else None."""
    return number(text) if len(text) <= MAX_ANSWER else None


def judge_integer(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Judgement:
    """Right where the extracted answer is a gold integer; `grader_error` where a gold is none."""
    wanted = [exact_number(gold) for gold in golds]
    if any(value is None or value.denominator != 1 for value in wanted):
        return Judgement("grader_error", None, f"the gold answer {golds[0][:50]!r} is not an integer; use reward.type = 'math'")
    answer = extracted(response, policy)
    if isinstance(answer, Judgement):
        return answer
    value = exact_number(answer)
    if value is None:
        return Judgement("wrong", answer, "not a number", "exact")
    right = value in wanted
    return Judgement("correct" if right else "wrong", answer, "equal integers" if right else "another number", "exact")


def judge_text(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Judgement:
    """Right where the extracted answer is a gold, letter by letter but for spaces, case and LaTeX text commands."""
    answer = extracted(response, policy)
    if isinstance(answer, Judgement):
        return answer
    right = plain_words(normalise(answer)) in {plain_words(normalise(gold)) for gold in golds}
    return Judgement("correct" if right else "wrong", answer, "equal text" if right else "another text", "text")


_CHOICE_WORDS = re.compile(
    r"^(?:(?:the|my|final|correct|right|answers?|options?|choices?|letters?|is|are)\b[\s:]*)+", re.IGNORECASE
)
_LETTER = r"[(\[{]?\s*[A-Z]\s*[)\]}]?"
_LETTERS = re.compile(rf"{_LETTER}(?:(?:\s*[,;&+]\s*(?:and\s+)?|\s+and\s+|\s+){_LETTER})*")
# A letter, and what stands at it: "C. 12", "(C) the cat", "C: 12", "C 12".
_LETTER_AND_TEXT = re.compile(r"(?:[(\[]\s*([A-Z])\s*[)\]]|([A-Z])\s*(?:[).:]|\s-|\s(?=[\d\\$+-])))\s*\S.*", re.DOTALL)
_TWO_CHOICES = re.compile(r"[(\[]?\s*[A-Z]\s*[)\]]?\s*(?:[,;&]|or\b|and\b)")


def choices(text: str) -> frozenset[str]:
    """The letters that an answer chooses, in upper case; none where it chooses nothing, or one letter or another."""
    plain = re.sub(r"[⟦⟧*]", " ", normalise(text)).strip()
    plain = _CHOICE_WORDS.sub("", plain).strip(" .:")
    if re.fullmatch(r"\(?[a-z]\)?", plain):
        plain = plain.upper()
    if _LETTERS.fullmatch(plain):
        return frozenset(re.findall(r"[A-Z]", plain))
    if (found := _LETTER_AND_TEXT.fullmatch(plain)) and not _TWO_CHOICES.match(plain):
        return frozenset(found[1] or found[2])
    # Several letters in a row, in order and each once: "BD".
    return frozenset(plain) if re.fullmatch(r"[A-J]{2,6}", plain) and list(plain) == sorted(set(plain)) else frozenset()


def judge_choice(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Judgement:
    """Right where the extracted answer chooses the gold's letters, all and no other (`C`, `(C)`, `C. 12`, `B and D`)."""
    wanted = [choices(gold) for gold in golds]
    if not all(wanted):
        return Judgement("grader_error", None, f"the gold answer {golds[0][:50]!r} is no choice; use reward.type = 'math'")
    answer = extracted(response, policy)
    if isinstance(answer, Judgement):
        return answer
    chosen = choices(answer)
    if not chosen:
        return Judgement("wrong", answer, "no letter of a choice", "text")
    right = chosen in wanted
    return Judgement("correct" if right else "wrong", answer, "the choice" if right else "another choice", "text")


def judge_regex(answer: str, golds: Sequence[str]) -> Judgement:
    """Right where the whole answer matches a gold regular expression; runs in a worker, for a pattern may hang."""
    right = any(re.fullmatch(gold, answer) for gold in golds)
    return Judgement("correct" if right else "wrong", answer, "matches" if right else "does not match", "regex")


def quick_math(response: str, golds: Sequence[str], policy: ExtractionPolicy) -> Judgement | tuple[Any, ...]:
    """What is decided without a computer-algebra system; otherwise the item for `judge_symbolic`."""
    if all(_NO_GOLD.fullmatch(gold) for gold in golds):
        return Judgement("grader_error", None, f"the gold answer {golds[0][:50]!r} is no answer; drop the row", "bounds")
    answer = extracted(response, policy)
    if isinstance(answer, Judgement):
        return answer
    open_golds = []
    stages = []
    for gold in golds:
        gold = last_boxed(gold) or gold
        equal, stage = compare(answer, gold[:MAX_ANSWER])
        if equal:
            return Judgement("correct", answer, "the same answer", stage)
        stages.append(stage)
        if equal is None:
            open_golds.append(gold)
    if not open_golds:
        return Judgement("wrong", answer, "another answer", stages[0])
    return answer, tuple(open_golds)


def judge_symbolic(answer: str, golds: Sequence[str]) -> Judgement:
    """Equivalence by math-verify, of answers that are short and flat enough for it; runs in a worker of the pool."""
    for text in (answer, *golds):
        if problem := _unfit(text):
            return Judgement("wrong" if text == answer else "grader_error", answer[:200], problem, "bounds")
    # Equal to no gold as it stands; the library decides by its computer algebra.
    from math_verify import parse, verify

    got = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    if not got:
        return Judgement("wrong", answer, "the answer cannot be parsed", "symbolic")
    unread = 0
    for gold in golds:
        want = parse(f"\\boxed{{{gold}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        unread += not want
        if want and verify(want, got, float_rounding=12, numeric_precision=30, timeout_seconds=None):
            return Judgement("correct", answer, "math-verify", "symbolic")
    if unread == len(golds):
        return Judgement("grader_error", answer, f"the gold answer {golds[0][:50]!r} cannot be parsed", "symbolic")
    return Judgement("wrong", answer, "math-verify", "symbolic")


def _unfit(text: str) -> str:
    """Why a text is kept from the computer algebra, or nothing."""
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


def judge_json(response: str, golds: Sequence[str]) -> Judgement:
    """Right where the response's JSON fits a gold JSON schema; runs in a worker, for a pattern may hang.

    The JSON is the last fenced block, or else all that follows `</think>`. References of a schema are not fetched.
    """
    from jsonschema import Draft202012Validator, SchemaError, ValidationError
    from referencing import Registry

    visible = response.rpartition("</think>")[2]
    blocks = re.findall(r"```(?:json)?\s*\n(.*?)```", visible, re.DOTALL)
    text = (blocks[-1] if blocks else visible).strip()
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return Judgement("no_answer", None, "no JSON found", "extraction")
    reason = ""
    for gold in golds:
        try:
            schema = json.loads(gold)
            Draft202012Validator.check_schema(schema)
            Draft202012Validator(schema, registry=Registry()).validate(document)
            return Judgement("correct", text[:MAX_ANSWER], "fits the schema", "json_schema")
        except ValidationError as error:
            reason = f"{error.json_path}: {error.message}"[:200]
        except (ValueError, SchemaError) as error:
            return Judgement("grader_error", None, f"the gold answer is no JSON schema: {error}"[:200], "json_schema")
    return Judgement("wrong", text[:MAX_ANSWER], reason, "json_schema")


def judge_reasoning_gym(answer: str, golds: Sequence[str]) -> Judgement:
    """The score in [0, 1] of reasoning-gym's own scorer; a gold is one of its entries as JSON. Runs in a worker.

    Some of those scorers hand the answer to sympy's parser, which evaluates it: what could call anything is refused here.
    """
    if _CODE.search(answer):
        return Judgement("wrong", answer[:200], "looks like code, and is not handed to the scorer", "bounds")
    from reasoning_gym import get_score_answer_fn  # pyright: ignore[reportMissingImports]

    best = 0.0
    for gold in golds:
        try:
            entry = json.loads(gold)
            scorer: Any = get_score_answer_fn(entry["metadata"]["source_dataset"])
        except (ValueError, KeyError, TypeError) as error:
            return Judgement("grader_error", None, f"the gold answer is no entry of reasoning-gym: {error!r}"[:200])
        best = max(best, float(scorer(answer, entry)))
    return Judgement("correct" if best == 1 else "wrong", answer, f"reasoning-gym: {best:g}", "reasoning_gym", score=best)


@functools.cache
def load_function(path: str) -> Callable[..., Any]:
    """The user's function at "module:name"; raises what its import raises, and TypeError for what is no function."""
    module, _, name = path.partition(":")
    function = getattr(importlib.import_module(module), name)
    if not callable(function):
        raise TypeError(f"{path} is a {type(function).__name__}, not a function")
    return function


def judge_by_function(path: str, response: str, golds: Sequence[str]) -> Judgement:
    """A user's `function(response, answer)`, which may be async and returns a bool or a score in [0, 1]; best of the golds."""
    function = load_function(path)
    best = 0.0
    for gold in golds:
        result = function(response, gold)
        if inspect.isawaitable(result):
            import asyncio  # slow to import, and rarely needed

            result = asyncio.run(_awaited(result))
        score = float(result)
        if not 0 <= score <= 1:
            return Judgement("grader_error", None, f"{path} returned {score}; a score lies in [0, 1]", "function")
        best = max(best, score)
    return Judgement("correct" if best == 1 else "wrong", None, f"{path}: {best:g}", "function", score=best)


async def _awaited(result: Any) -> Any:
    return await result


def judge_math_verify(response: str, golds: Sequence[str]) -> Judgement:
    """Plain math-verify with its defaults, for comparison."""
    from math_verify import parse, verify

    got = parse(response, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    for gold in golds:
        text = gold if "$" in gold or "\\boxed" in gold else f"${gold}$"
        want = parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        if verify(want, got, timeout_seconds=None):
            return Judgement("correct", str(got[0]), "math-verify", "math-verify")
    return Judgement("wrong" if got else "no_answer", str(got[0]) if got else None, "math-verify", "math-verify")


def judge_deepscaler(response: str, golds: Sequence[str]) -> Judgement:
    """The rules of DeepScaleR's reward, for comparison: only a box after `</think>`; equal after normalisation, or by items.

    Items are equal in value where the gold is no integer or fraction; its computer algebra is our own evaluation here.
    """
    answer = extracted(response, ExtractionPolicy(require_boxed=True, require_think_close=True))
    if isinstance(answer, Judgement):
        return answer
    for gold in golds:
        left, right = (re.sub(r"\s+|[$%°]|⟦[^⟧]*⟧", "", normalise(text)) for text in (answer, last_boxed(gold) or gold))
        items = [text.strip("()[]").split(",") if "," in text else [text] for text in (left, right)]
        brackets = [(text[:1] + text[-1:]) if "," in text else "" for text in (left, right)]
        alike = len(items[0]) == len(items[1]) and brackets[0] == brackets[1]
        if left == right or (alike and all(map(_same_item, *items))):
            return Judgement("correct", answer, "DeepScaleR's rules", "deepscaler")
    return Judgement("wrong", answer, "DeepScaleR's rules", "deepscaler")


def _same_item(answer: str, gold: str) -> bool:
    if re.fullmatch(r"-?\d+(?:/\d+)?", gold):
        return answer == gold
    return compare(answer, gold)[0] is True
