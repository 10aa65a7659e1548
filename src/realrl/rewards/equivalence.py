"""Whether two final answers are the same: structures first, numbers exactly, formulas by value.

Every function answers True, False, or None where it cannot be sure; nothing here raises on a string.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from realrl.rewards import expression
from realrl.rewards.latex import normalise, plain_words

_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx|equiv|sim)(?![a-zA-Z])|[=<>]")
_NAME = re.compile(
    r"(?:⟦[^⟧]*⟧|\\?[a-zA-Z]+|\([a-zA-Z](?:,\s*[a-zA-Z])*\))(?:_(?:\w|\{[^{}]*\}))?(?:\([a-zA-Z\d, ]*\))?'*|\\angle\s*[A-Z]+"
)
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}")
_DECIMAL = re.compile(r"-?(?P<whole>\d*)\.(?P<places>\d+)(?:(?:[eE]|\*10\^)\{?(?P<power>[+-]?\d{1,4})\}?)?")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.(?P<places>\d+))?(?:[eE]|\*10\^)\{?(?P<power>[+-]?\d{1,4})\}?")
_UNITS = re.compile(r"(?P<value>.*?\S)\s*(?P<unit>(?:⟦[^⟧]*⟧(?:\s*\^\s*\{?-?\d\}?)?[\s*/.]*)+)")
_BARE_UNIT = re.compile(
    r"(?P<value>.*[\d})])\s*(?P<unit>(?:square |cubic |sq |cu )?(?:[cmk]m|k[gm]|m[gl]|inch(?:es)?|in|f(?:ee|oo)t|ft|yards?|"
    r"miles?|(?:centi|kilo|milli)?met(?:er|re)s?|grams?|lit(?:er|re)s?|seconds?|sec|minutes?|min|hours?|hrs?|days?|weeks?|months?|years?|"
    r"dollars?|cents?|units?|degrees?|radians?|percent|people|students?|ways|apples?|pounds?|lbs?|gallons?|mph|points?)"
    r"(?:\s*\^\s*\{?\d\}?)?)",
    re.IGNORECASE,
)
_LENGTHS = {"mm", "cm", "m", "km", "in", "ft", "kg", "g", "mg", "s", "min", "h", "ml", "l"}
_LONG_DECIMAL = re.compile(r"-?\d*\.\d{12,}")
_BASE = re.compile(r"(?P<digits>[0-9A-F]+)_\{?(?P<base>\d{1,2})\}?")
_EMPTY = {"no solution", "no solutions", "none", "emptyset", "varnothing", "no real solution", "no real solutions"}
_MAX_ITEMS = 60
_MAX_DEPTH = 8
_CLOSE = {"(": ")]", "[": ")]", "\\{": ("\\}",), "{": "}"}


@dataclass(frozen=True)
class Value:
    """One answer as read: `kind` is scalar, tuple, set, list, union, matrix or relation."""

    kind: str
    text: str = ""
    items: tuple[Value, ...] = ()
    brackets: str = ""
    name: str = ""
    parts: tuple[str, ...] = ()


def compare(answer: str, gold: str) -> tuple[bool | None, str]:
    """Whether two final answers are the same (None: undecided), and the stage that says so: text, exact, structure or value."""
    left, right = normalise(answer), normalise(gold)
    if not left or not right:
        return (None, "") if left == right else (False, "text")
    if _compact(left) == _compact(right):
        return True, "text"
    a, b = read(left), read(right)
    if a is None or b is None:
        return None, ""
    stage = "structure"
    if a.kind == b.kind == "scalar":
        trees = [expression.parse(value.text) for value in (a, b)]
        known = [tree is not None and expression.exact(tree) is not None for tree in trees]
        stage = "exact" if all(known) else "value"
    return same(a, b), stage


def _compact(text: str) -> str:
    """Without the spaces that carry no meaning; those between digits do."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text).replace("⟦", "").replace("⟧", "")


def read(text: str, depth: int = 0) -> Value | None:
    """The structure of a normalised answer; None where it is too deep or too wide to be an answer."""
    text = _without_modulus(text.strip())
    if depth > _MAX_DEPTH:
        return None
    if "\\pm" in text:
        return _read_items("list", [text.replace("\\pm", "+"), text.replace("\\pm", "-")], depth)
    matrix = _MATRIX.fullmatch(text)
    if matrix and "\\begin" not in matrix[2]:
        rows = [part for part in matrix[2].strip().split("⏎") if part.strip()]
        values = [_read_items("tuple", row.split("&"), depth) for row in rows]
        if any(value is None for value in values):
            return None
        return Value("matrix", text, tuple(value for value in values if value), "|" if matrix[1][0] in "vV" else "")
    rows = split(text, re.compile(r";"))
    if len(rows) > 1 and any(len(split(row, re.compile(r","))) > 1 for row in rows):
        return _read_items("list", rows, depth)
    ways = split(text, re.compile(r"⟦\s*(?i:or)\s*⟧|(?<![a-zA-Z])or(?![a-zA-Z])"))
    either = _read_items("list", ways, depth) if len(ways) > 1 else None
    if either is not None and all(same(either.items[0], item) for item in either.items[1:]):
        # "0.09 or 9/100": one answer, written twice.
        return either.items[0]
    items = split(text, re.compile(r"[,;]|⟦\s*(?i:and|or)\s*⟧|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])"))
    if len(items) > 1:
        return _read_items("list", [item for item in items if item.strip()], depth)
    relation = _read_relation(text, depth)
    if relation is not None:
        return relation
    items = split(text, re.compile(r"\\cup(?![a-zA-Z])"))
    if len(items) > 1:
        return _read_items("union", items, depth)
    return _read_bracketed(text, depth)


def readable(text: str) -> bool:
    """Whether an answer is a formula, or a structure of formulas, that is read in full."""
    value = read(normalise(text))
    return value is not None and _readable(value)


def is_words(text: str) -> bool:
    """Whether an answer is words, or the letter of a choice, and no formula."""
    plain = normalise(text)
    return "\\" not in plain and bool(re.fullmatch(r"[a-z][a-z ,.\-]*", plain_words(plain).strip("() ")))


def _readable(value: Value) -> bool:
    if value.kind == "scalar":
        text = _without_unit(value.text)[0].rstrip("%° ")
        return expression.parse(text) is not None or _BASE.fullmatch(text) is not None
    if value.kind == "relation":
        return all(expression.parse(part) is not None for part in value.parts)
    return all(_readable(item) for item in value.items)


def _without_modulus(text: str) -> str:
    return re.sub(r"\s*\(?\\(?:pmod|bmod|mod)(?![a-zA-Z])\s*(?:\{[^{}]*\}|\d+)\)?$", "", text)


def _read_items(kind: str, texts: Sequence[str], depth: int, brackets: str = "") -> Value | None:
    if len(texts) > _MAX_ITEMS:
        return None
    values = [read(text, depth + 1) for text in texts]
    if any(value is None for value in values):
        return None
    return Value(kind, items=tuple(value for value in values if value is not None), brackets=brackets)


def _read_bracketed(text: str, depth: int) -> Value | None:
    start = "\\{" if text.startswith("\\{") else text[:1]
    if start in _CLOSE and _closes_at_end(text, start):
        end = "\\}" if start == "\\{" else text[-1]
        inside = text[len(start) : -len(end)]
        items = split(inside, re.compile(r"[,;]"))
        if start == "{" and len(items) == 1:
            return read(inside, depth + 1)
        if start in ("\\{", "{"):
            if re.search(r"[|:]", inside):
                return Value("scalar", text)
            return _read_items("set", [item for item in items if item.strip()], depth)
        if len(items) > 1:
            return _read_items("tuple", items, depth, start + end)
        if start + end == "()":
            return read(inside, depth + 1) if len(inside.strip()) == 1 else Value("scalar", text)
    return Value("scalar", text)


def _closes_at_end(text: str, start: str) -> bool:
    if not text.endswith(tuple(_CLOSE[start])):
        return False
    level = 0
    for match in re.finditer(r"\\[{}]|[()\[\]{}]", text):
        level += 1 if match[0] in ("\\{", "(", "[", "{") else -1
        if level == 0:
            return match.end() == len(text)
    return False


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """`text` cut at the separators outside of every bracket."""
    parts, level, last, position = [], 0, 0, 0
    while position < len(text):
        step = 2 if text.startswith(("\\{", "\\}"), position) else 1
        symbol = text[position : position + step]
        if symbol in ("(", "[", "{", "\\{"):
            level += 1
        elif symbol in (")", "]", "}", "\\}"):
            level -= 1
        elif level == 0 and (match := separator.match(text, position)):
            parts.append(text[last:position])
            last = match.end()
            step = max(match.end() - position, 1)
        position += step
    return [*parts, text[last:]]


def _read_relation(text: str, depth: int) -> Value | None:
    """`name = value`, `x \\in S`, chains of inequalities as intervals, other equations and inequalities; None: no relation."""
    parts = [part.strip() for part in split(text, _RELATION)]
    if len(parts) == 1 or not all(parts):
        return None
    signs = [sign for sign in _signs(text, parts)]
    if all(sign in ("=", "\\in", "\\approx", "\\equiv", "\\sim") for sign in signs):
        # What follows the first "≈" is a rounding of what stands before it, unless that is a mere name.
        if "\\approx" in signs and not (signs[0] == "\\approx" and _NAME.fullmatch(parts[0])):
            cut = signs.index("\\approx") + 1
            parts, signs = parts[:cut], signs[: cut - 1]
            if len(parts) == 1:
                return read(parts[0], depth + 1)
        if _NAME.fullmatch(parts[0]):
            value = read(parts[-1], depth + 1)
            return value and Value(value.kind, value.text, value.items, value.brackets, parts[0], (parts[0], parts[-1]))
        values = [expression.parse(part) for part in parts]
        if len(parts) > 2 or all(value is not None and not expression.variables(value) for value in values):
            return read(parts[-1], depth + 1)
        return Value("relation", "=", parts=(parts[0], parts[1]))
    return _read_inequality(parts, signs, depth)


def _signs(text: str, parts: Sequence[str]) -> list[str]:
    """The relation signs between `parts`, in order."""
    signs, position = [], 0
    for part in parts[:-1]:
        position = text.index(part, position) + len(part)
        match = _RELATION.search(text, position)
        signs.append(match[0] if match else "=")
        position = match.end() if match else position
    return signs


def _read_inequality(parts: Sequence[str], signs: Sequence[str], depth: int) -> Value | None:
    if all(sign in (">", "\\ge") for sign in signs):
        parts, signs = parts[::-1], [{">": "<", "\\ge": "\\le"}[sign] for sign in signs][::-1]
    if not all(sign in ("<", "\\le") for sign in signs) or len(parts) > 3:
        return Value("relation", signs[0], parts=tuple(parts)) if len(parts) == 2 else Value("scalar", " ".join(parts))
    letter = re.compile(r"[a-zA-Z](?:\([a-zA-Z]\))?|\\theta|\\alpha")
    if len(parts) == 3 and letter.fullmatch(parts[1]):
        low, high, opened, closed = parts[0], parts[2], signs[0], signs[1]
    elif len(parts) == 2 and letter.fullmatch(parts[0]):
        low, high, opened, closed = "-\\infty", parts[1], "<", signs[0]
    elif len(parts) == 2 and letter.fullmatch(parts[1]):
        low, high, opened, closed = parts[0], "\\infty", signs[0], "<"
    else:
        return Value("relation", signs[0], parts=tuple(parts)) if len(parts) == 2 else Value("scalar", " ".join(parts))
    brackets = ("(" if opened == "<" else "[") + (")" if closed == "<" else "]")
    value = _read_items("tuple", [low, high], depth, brackets)
    # As an inequality of two sides it can also be held against one that is written another way, such as -x > -1.
    return value and (replace(value, text=signs[0], parts=tuple(parts)) if len(parts) == 2 else value)


def same(a: Value, b: Value) -> bool | None:
    """Whether answer `a` is the gold `b`."""
    if a.name and b.name and not _names_agree(a.name, b.name):
        return False
    if "relation" in (a.kind, b.kind):
        left, right = a.parts, b.parts
        if not left or not right:
            return None if "=" in a.text + b.text else False
        signs = {"=" if value.name else value.text for value in (a, b)}
        return _same_relation(left, right, signs.pop()) if len(signs) == 1 else False
    if a.kind == b.kind == "scalar":
        return same_scalar(a.text, b.text)
    if a.kind == b.kind == "matrix":
        return a.brackets == b.brackets and _in_order(a.items, b.items)
    kinds = {a.kind, b.kind}
    if kinds <= {"list", "set"} or kinds == {"union"}:
        return _any_order(a.items, b.items)
    if kinds == {"tuple"}:
        # Long square and round brackets are both lists; two items in them may be an interval.
        alike = a.brackets == b.brackets or not (a.brackets and b.brackets) or len(a.items) > 2
        return alike and _in_order(a.items, b.items)
    if kinds == {"tuple", "list"}:
        return _in_order(a.items, b.items)
    if kinds == {"tuple", "matrix"}:
        rows, other = (a.items, b) if a.kind == "matrix" else (b.items, a)
        column = all(len(row.items) == 1 for row in rows)
        vector = [row.items[0] for row in rows] if column else rows[0].items
        same_shape = column or len(rows) == 1
        return same_shape and (_in_order(vector, other.items) if other is b else _in_order(other.items, vector))
    if kinds == {"scalar", "set"} or kinds == {"scalar", "list"}:
        one, many = (a, b) if a.kind == "scalar" else (b, a)
        if not many.items and plain_words(one.text) in _EMPTY:
            return True
        return same(*((one, many.items[0]) if a is one else (many.items[0], one))) if len(many.items) == 1 else False
    return None if any(value.kind == "scalar" and expression.parse(value.text) is None for value in (a, b)) else False


def _names_agree(a: str, b: str) -> bool:
    a, b = (plain_words(name).replace(" ", "") for name in (a, b))
    return a == b or len(a) > 1 or len(b) > 1


def _in_order(a: Sequence[Value], b: Sequence[Value]) -> bool | None:
    if len(a) != len(b):
        return False
    results = [same(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in results else None if None in results else True


def _any_order(a: Sequence[Value], b: Sequence[Value]) -> bool | None:
    """As sets: each of either side is one of the other."""
    table = [[same(x, y) for y in b] for x in a]
    found = [*table, *([row[k] for row in table] for k in range(len(b)))]
    if all(True in row for row in found):
        return True
    return None if all(True in row or None in row for row in found) else False


def same_scalar(answer: str, gold: str) -> bool | None:
    """Two answers without structure: words, numbers with unit, percent or degrees, formulas."""
    words = _same_words(answer, gold)
    if words is not None:
        return words
    (a, unit_a), (b, unit_b) = (_without_unit(text) for text in (answer, gold))
    if unit_a != unit_b and {unit_a, unit_b} <= _LENGTHS:
        return False
    bases = [_BASE.fullmatch(text.replace(" ", "")) for text in (a, b)]
    if any(bases):
        digits = [match["digits"] if match else text for match, text in zip(bases, (a, b), strict=True)]
        named = {match["base"] for match in bases if match}
        return digits[0] == digits[1] and len(named) == 1
    percent = [text.endswith("%") for text in (a, b)]
    a, b = (text.rstrip("%° ") for text in (a, b))
    x, y = expression.parse(a), expression.parse(b)
    if x is None or y is None:
        return True if _compact(a) == _compact(b) else None
    equal = _same_value(x, y, a, b)
    if not equal and percent[0] != percent[1]:
        hundred = ("num", Fraction(100))
        x, y = (x, ("mul", y, hundred)) if percent[0] else (x, ("div", y, hundred))
        equal = _same_value(x, y, "", "")
    return equal


def _same_words(answer: str, gold: str) -> bool | None:
    """For answers that are words or the letter of a choice; None for formulas."""
    a, b = plain_words(answer), plain_words(gold)
    if a in _EMPTY and b in _EMPTY:
        return True
    choice = re.fullmatch(r"\(?([a-z])\)?", b)
    if choice and gold.strip("⟦⟧() ").isupper():
        found = re.match(r"⟦?\(?([A-Z])(?:[).:⟧]|$)", answer.strip())
        if found:
            return found[1].lower() == choice[1]
    marked = [text.startswith("⟦") and text.endswith("⟧") for text in (answer, gold)]
    wordy = [bool(re.fullmatch(r"[a-z][a-z .\-]*[a-z.]", text)) and "\\" not in raw for text, raw in ((a, answer), (b, gold))]
    if not any(wordy) and not all(marked):
        return None
    if a.strip("() ") == b.strip("() "):
        return True
    trees = [expression.parse(text.strip("⟦⟧")) for text in (answer, gold)]
    if all(tree is not None for tree in trees) and max(len(a), len(b)) <= 3 and not any(marked) and gold.islower():
        return None
    if not all(wordy) and any(tree is not None for tree in trees) and not all(marked):
        # A word on one side, a formula on the other: "pi" is the only word that is a number.
        return None if "pi" in (a, b) or "infinity" in (a, b) else False
    return False if all(wordy) or all(marked) else None


def _without_unit(text: str) -> tuple[str, str]:
    text = re.sub(r"^(?:⟦[^⟧]*⟧\s*)+(?=[^\s*/^+_-])", "", text)
    match = _UNITS.fullmatch(text) or _BARE_UNIT.fullmatch(text)
    if match is None:
        return text, ""
    unit = plain_words(match["unit"])
    value = match["value"].rstrip("* ")
    return (value + "%" if unit == "percent" else value), unit


def _same_value(x: expression.Node, y: expression.Node, answer: str, gold: str) -> bool | None:
    left, right = expression.exact(x), expression.exact(y)
    tolerance = half_unit(gold)
    if _LONG_DECIMAL.fullmatch(answer):
        # A dozen digits are a rounding, be it of an answer or of a gold.
        tolerance = Fraction(10) ** -len(answer.partition(".")[2]) if tolerance is None else tolerance
    if left is not None and right is not None:
        return left == right or (tolerance is not None and abs(left - right) <= tolerance)
    names = sorted(expression.variables(x) | expression.variables(y))
    verdicts = [_same_at(x, y, point, tolerance if not names else None) for point in _points(names)]
    return False if False in verdicts else None if None in verdicts else True


def half_unit(gold: str) -> Fraction | None:
    """Half a unit of the last place of a decimal gold with three significant digits or more (two in scientific notation).

    Such a gold may be a rounded value; a shorter or whole one is taken as exact (None).
    """
    text = gold.replace(" ", "")
    match = _DECIMAL.fullmatch(text) or _SCIENTIFIC.fullmatch(text)
    if match is None:
        return None
    digits = re.sub(r"(?:[eE]|\*10\^).*", "", text).replace(".", "").lstrip("-0")
    power = int(match["power"] or 0)
    if len(digits) < (2 if match["power"] else 3):
        return None
    return Fraction(10) ** (power - len(match["places"] or "")) / 2


def _points(names: Sequence[str]) -> list[dict[str, Fraction]]:
    """Where formulas are compared: fixed positive points, one where there is no variable."""
    if not names:
        return [{}]
    return [{name: Fraction(150 + zlib.crc32(f"{name}{k}".encode()) % 1000, 700) for name in names} for k in range(3)]


def _same_at(x: expression.Node, y: expression.Node, point: dict[str, Fraction], tolerance: Fraction | None) -> bool | None:
    left, right = expression.numeric(x, point), expression.numeric(y, point)
    if left is None or right is None:
        return None
    if left == right:
        return True
    if not (expression.finite(left) and expression.finite(right)):
        return False
    difference = abs(left - right)
    if tolerance is not None and difference * tolerance.denominator <= tolerance.numerator:
        return True
    return bool(difference <= max(abs(left), abs(right)) * 1e-40)


def _same_relation(a: Sequence[str], b: Sequence[str], sign: str) -> bool | None:
    """Two equations (or inequalities with one sign) are the same where their sides' differences are proportional."""
    trees: list[Any] = [expression.parse(part) for part in (*a, *b)]
    if any(tree is None for tree in trees):
        return None
    left, right = (("add", trees[i], ("neg", trees[i + 1])) for i in (0, 2))
    names = sorted(expression.variables(left) | expression.variables(right))
    ratios = []
    for point in _points(names):
        top, bottom = expression.numeric(left, point), expression.numeric(right, point)
        if top is None or bottom is None or not top or not bottom:
            return None
        ratios.append(top / bottom)
    if sign in ("<", "\\le") and ratios[0].real < 0:
        return False
    return all(abs(ratio - ratios[0]) <= abs(ratios[0]) * 1e-40 for ratio in ratios)
