"""Check whether two final answers are the same: compare structures first, then numbers exactly and formulas by value.

A comparison returns True, False, or None if it is undecided. Nothing here raises on any string.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from realrl.verifier import expression
from realrl.verifier.intervals import merged
from realrl.verifier.latex import closing_brace, normalise, plain_words
from realrl.verifier.names import by_name, names_agree, usual_order
from realrl.verifier.structure import Value, read
from realrl.verifier.units import conversion
from realrl.verifier.words import contradict, phrases_differ

_DECIMAL = re.compile(r"-?(?P<whole>\d*)\.(?P<places>\d+)(?:(?:[eE]|\*10\^)\{?(?P<power>[+-]?\d{1,4})\}?)?")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.(?P<places>\d+))?(?:[eE]|\*10\^)\{?(?P<power>[+-]?\d{1,4})\}?")
_UNITS = re.compile(r"(?P<value>.*?\S)\s*(?P<unit>(?:⟦[^⟧]*⟧(?:\s*\^\s*\{?-?\d\}?)?[\s*/.]*)+)")
# Words before a formula; this matches any text.
_BEFORE = re.compile(r"(?:(?:⟦[^⟧]*⟧\s*)+(?=[^\s*/^+_-]))?")
_QUANTITY = re.compile(r"\s*(\d[^⟦⟧]*)(⟦[^⟧]*⟧)")
_BARE_UNIT = re.compile(
    r"(?P<value>.*[\d})])\s*(?P<unit>(?:square |cubic |sq |cu )?(?:[cmk]m|k[gm]|m[gl]|inch(?:es)?|in|f(?:ee|oo)t|ft|yards?|"
    r"miles?|(?:centi|kilo|milli)?met(?:er|re)s?|grams?|lit(?:er|re)s?|seconds?|sec|minutes?|min|hours?|hrs?|days?|weeks?|months?|years?|"
    r"dollars?|cents?|units?|degrees?|radians?|percent|people|students?|ways|apples?|pounds?|lbs?|gallons?|mph|points?)"
    r"(?:\s*\^\s*\{?\d\}?)?)",
    re.IGNORECASE,
)
# A number followed by words that are not a formula: "18 eggs", "18 km/h", "1/2 cup".
_BARE_WORDS = re.compile(
    r"((?:[a-zA-Z]\s*=\s*)?[-+]?(?:\d+(?:\.\d+)?(?:\s*/\s*\d+)?|\d*\s*\\frac\{\d+\}\{\d+\})(?:\*\d+(?:\^\{\d+\})?)?)\s+"
    r"((?!(?:or|and|mod|pi|if|for|sin|cos|tan|log|ln|sqrt|exp|to)(?![a-zA-Z]))"
    r"(?:[a-zA-Z]{2,}|[mgshLNJWVAK](?![a-zA-Z]))(?:[ /*.-]+[a-zA-Z]+)*(?:\s*\^\s*\{?\d\}?)?)"
)
_ELLIPSIS = re.compile(r"\\[lcd]?dots|\.\.\.|…")
_LONG_DECIMAL = re.compile(r"-?\d*\.\d{12,}")
_BASE = re.compile(r"\(?(?P<digits>\d[0-9A-Fa-f]*|[0-9A-F]+)\)?_\{?(?P<base>\d{1,2})\}?")
_EMPTY = {
    "no solution",
    "no solutions",
    "none",
    "emptyset",
    "varnothing",
    "no real solution",
    "no real solutions",
    "无解",
    "空集",
}
_SYNONYMS = (_EMPTY, {"dne", "does not exist", "doesnt exist"}, {"undefined", "not defined"})
# A function of an angle; the angle may be in degrees.
_OF_ANGLE = re.compile(r"(?<![a-zA-Z])\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])(?!\s*\^\s*\{?\s*-1)")


def compare(answer: str, gold: str) -> tuple[bool | None, str]:
    """Whether two final answers are the same (None: undecided), and the stage that decided: text, exact, structure or value."""
    left, right = normalise(answer), normalise(gold)
    if not left or not right:
        return (None, "") if left == right else (False, "text")
    if _compact(left) == _compact(right):
        return True, "text"
    if _decimal_comma(left, right):
        return True, "exact"
    if contradict(left, right):
        return False, "text"
    left, right = _with_unit(left, right), _with_unit(right, left)
    a, b = read(left), read(right)
    if a is None or b is None:
        return None, ""
    stage = "structure"
    if a.kind == b.kind == "scalar":
        trees = [expression.parse(value.text) for value in (a, b)]
        known = [tree is not None and expression.exact(tree) is not None for tree in trees]
        stage = "exact" if all(known) else "value"
    return same(a, b), stage


def number(text: str) -> Fraction | None:
    r"""The value of an answer that is one rational number, with or without a name, unit or currency (`x = 18`, `18 eggs`)."""
    text = normalise(text)
    value = None if contradict(text, "0") else read(_with_unit(text, "0"))
    if value is None or value.kind != "scalar" or len(_QUANTITY.findall(value.text)) > 1:
        return None
    tree = expression.parse(_without_unit(value.text)[0].rstrip("%° "))
    return None if tree is None else expression.exact(tree)


def _with_unit(text: str, other: str) -> str:
    """`18 eggs` → `18⟦eggs⟧`, if the other answer has no letters that could be variables, or has a unit of the same kind."""
    found = _BARE_WORDS.fullmatch(text)
    if found is None:
        return text
    theirs = _BARE_WORDS.fullmatch(other)
    names = [match[2].lower().removesuffix("s") for match in (found, theirs) if match]
    alike = theirs is not None and (names[0] == names[1] or conversion(found[2], theirs[2]))
    if not alike and re.search(r"[a-zA-Z]", re.sub(r"⟦[^⟧]*⟧|\\[a-zA-Z]+", "", other)):
        return text
    return f"{found[1]}⟦{found[2]}⟧"


def _compact(text: str) -> str:
    """Remove the spaces without meaning; spaces between digits have one."""
    text = re.sub(r"(?<!\d) | (?!\d)", "", text).replace("⟦", "").replace("⟧", "")
    return text[1:-1] if text.startswith("{") and closing_brace(text, 0) == len(text) - 1 else text


def readable(text: str) -> bool:
    """Whether the whole answer can be parsed, as a formula or a structure of formulas."""
    value = read(normalise(text))
    return value is not None and _readable(value)


def is_words(text: str) -> bool:
    """Whether an answer is words or the letter of a choice, not a formula."""
    plain = normalise(text)
    return "\\" not in plain and bool(re.fullmatch(r"[a-z][a-z ,.\-]*", plain_words(plain).strip("() ")))


def _readable(value: Value) -> bool:
    if value.kind == "scalar":
        text = _without_unit(value.text)[0].rstrip("%° ")
        return expression.parse(text) is not None or _BASE.fullmatch(text) is not None
    if value.kind == "relation":
        return all(expression.parse(part) is not None for part in value.parts)
    return all(_readable(item) for item in value.items)


def same(a: Value, b: Value) -> bool | None:
    """Whether the answer `a` equals the gold answer `b`."""
    if a.name and b.name and not names_agree(a.name, b.name):
        return False
    if a.modulus and b.modulus and a.modulus != b.modulus:
        return False
    named = by_name(a), by_name(b)
    if named[0] and named[0].keys() == named[1].keys():
        return _in_order(list(named[0].values()), [named[1][name] for name in named[0]])
    if bool(named[0]) != bool(named[1]) and (a if named[1] else b).kind == "tuple":
        names = named[0] or named[1]
        items = [names[name] for name in usual_order(names) or names]
        return _in_order(items, b.items) if named[0] else _in_order(a.items, items)
    a = _with_argument_of(a, b)
    if "relation" in (a.kind, b.kind):
        left, right = a.parts, b.parts
        if not left or not right:
            # The left side of an equation is not the name of a value: 3 is not x + y = 3.
            equation = next((value for value in (a, b) if value.kind == "relation" and value.text == "="), None)
            tree = expression.parse(equation.parts[0]) if equation else None
            return None if equation and (tree is None or tree[0] == "call") else False
        if len(left) != 2 or len(right) != 2:
            # A chain: the same signs between the same terms.
            alike = a.text == b.text and len(left) == len(right)
            return alike and _in_order([Value("scalar", part) for part in left], [Value("scalar", part) for part in right])
        signs = {"=" if value.name else value.text for value in (a, b)}
        return _same_relation(left, right, signs.pop()) if len(signs) == 1 else False
    if a.kind == b.kind == "scalar":
        return same_scalar(a.text, b.text)
    if a.kind == b.kind == "matrix":
        return a.brackets == b.brackets and _in_order(a.items, b.items)
    kinds = {a.kind, b.kind}
    if kinds <= {"list", "set"} or kinds == {"union"} or (kinds == {"union", "list"} and "or" in (a.brackets, b.brackets)):
        equal = _any_order(a.items, b.items)
        return equal or _same_set(a, b) or equal if "union" in kinds else equal
    if "union" in kinds and kinds <= {"union", "tuple", "set"}:
        return _same_set(a, b)
    if kinds == {"tuple"}:
        # More than two items are a list in either kind of brackets; two items may be an interval.
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
        if many.brackets == "or":
            # "0.09 or 9/100" is the same answer in two forms.
            return all(same(one, item) is True for item in many.items)
        return same(*((one, many.items[0]) if a is one else (many.items[0], one))) if len(many.items) == 1 else False
    return None if any(value.kind == "scalar" and expression.parse(value.text) is None for value in (a, b)) else False


def _with_argument_of(a: Value, b: Value) -> Value:
    """`a` with its function's argument renamed to that of `b`: f(z) = 2z is f(x) = 2x."""
    arguments = [re.fullmatch(r"\\?[a-zA-Z]+\(([a-zA-Z])\)", value.name) for value in (a, b)]
    if a.kind != "scalar" or not (arguments[0] and arguments[1]) or arguments[0][1] == arguments[1][1]:
        return a
    return replace(a, text=_renamed(a.text, arguments[0][1], arguments[1][1]))


def _renamed(text: str, old: str, new: str) -> str:
    """`text` with letter `old` replaced by `new`; unchanged if `new` already occurs."""
    if re.search(rf"(?<![\\a-zA-Z]){new}(?![a-zA-Z])", text):
        return text
    return re.sub(rf"(?<![\\a-zA-Z]){old}(?![a-zA-Z])", new, text)


def _same_set(a: Value, b: Value) -> bool | None:
    """Compare two unions as sets of numbers; None if an end is not a number."""
    left, right = merged(a), merged(b)
    return None if left is None or right is None else left == right


def _in_order(a: Sequence[Value], b: Sequence[Value]) -> bool | None:
    if len(a) != len(b):
        return False
    results = [same(x, y) for x, y in zip(a, b, strict=True)]
    return False if False in results else None if None in results else True


def _any_order(a: Sequence[Value], b: Sequence[Value]) -> bool | None:
    """Compare as sets: every item of each side equals an item of the other side."""
    table = [[same(x, y) for y in b] for x in a]
    found = [*table, *([row[k] for row in table] for k in range(len(b)))]
    if all(True in row for row in found):
        return True
    return None if all(True in row or None in row for row in found) else False


def same_scalar(answer: str, gold: str) -> bool | None:
    """Compare two answers without structure: words, numbers with unit, percent or degrees, formulas."""
    words = _same_words(answer, gold)
    if words is not None:
        return words
    if contradict(answer, gold) or phrases_differ(*(_BEFORE.match(text)[0] for text in (answer, gold))):  # pyright: ignore[reportOptionalSubscript]
        return False
    if bool(_ELLIPSIS.search(answer)) != bool(_ELLIPSIS.search(gold)):
        return False
    if any(len(_QUANTITY.findall(text)) > 1 for text in (answer, gold)):
        return _same_quantities(answer, gold)
    (a, unit_a), (b, unit_b) = (_without_unit(text) for text in (answer, gold))
    factor = _conversion(*((unit or ("°" if text.endswith("°") else "")) for text, unit in ((a, unit_a), (b, unit_b))))
    if factor == 0:
        return False
    bases = [_BASE.fullmatch(text.replace(" ", "")) for text in (a, b)]
    if any(bases):
        digits = [match["digits"].upper() if match else text for match, text in zip(bases, (a, b), strict=True)]
        named = {match["base"] for match in bases if match}
        return digits[0] == digits[1] and len(named) == 1
    percent = [text.endswith("%") for text in (a, b)]
    # Inside a sine, the parser itself converts degrees.
    degrees = ["°" in text and not _OF_ANGLE.search(text) for text in (a, b)]
    if any(percent[k] and degrees[1 - k] for k in (0, 1)):
        return False
    a, b = (text.rstrip("% ").replace("°", "" if alone else "°") for text, alone in zip((a, b), degrees, strict=True))
    x, y = expression.parse(a), expression.parse(b)
    if x is None or y is None:
        return None if factor not in (None, 1) else True if _compact(a) == _compact(b) else None
    if factor not in (None, 1):
        return _same_value(("mul", x, ("num", factor)), y, "", b)
    equal = _same_value(x, y, a, b)
    if equal and percent[0] != percent[1] and (value := expression.exact(x)) is not None and 0 < abs(value) < 1:
        # 50 may mean 50 %, but 0.5 does not mean 0.5 %.
        equal = False
    if not equal and percent[0] != percent[1]:
        hundred = ("num", Fraction(100))
        x = ("div", x, hundred) if percent[0] else ("mul", x, hundred)
        return _same_value(x, y, "", b)
    if not equal and degrees[0] != degrees[1]:
        radian = ("div", ("const", "pi"), ("num", Fraction(180)))
        x, y = (("mul", x, radian), y) if degrees[0] else (x, ("mul", y, radian))
        return _same_value(x, y, "", "")
    if not equal and [expression.variables(tree) & {"c", "C"} for tree in (x, y)] in ([{"c"}, {"C"}], [{"C"}, {"c"}]):
        # The constant of an integral may be c or C.
        renamed = expression.parse(_renamed(a, "c", "C") if "c" in expression.variables(x) else _renamed(a, "C", "c"))
        return equal if renamed is None else _same_value(renamed, y, "", "")
    if not equal and "\\pi" in a and "\\pi" in b:
        # The integer in a family of angles has several usual names.
        letters = [expression.variables(tree) & set("kmn") for tree in (x, y)]
        if letters[0] != letters[1] and all(len(found) == 1 for found in letters):
            renamed = expression.parse(_renamed(a, *letters[0], *letters[1]))
            return equal if renamed is None else _same_value(renamed, y, "", "")
    return equal


def _conversion(unit: str, other: str) -> Fraction | None:
    """Like `units.conversion`, but None if an answer has no unit or both units have the same name."""
    if not unit or not other or plain_words(unit) == plain_words(other):
        return None
    return conversion(unit, other)


def _same_quantities(answer: str, gold: str) -> bool | None:
    """Whether two quantities such as `2⟦hours⟧30⟦minutes⟧` have the same parts, or the same sum (`150⟦minutes⟧`)."""
    a, b = ([(found[1], found[2]) for found in _QUANTITY.finditer(text)] for text in (answer, gold))
    if not a or not b or _QUANTITY.sub("", answer).strip() != _QUANTITY.sub("", gold).strip():
        return False
    totals = [_total(parts, b[0][1]) for parts in (a, b)]
    if totals[0] is not None and totals[1] is not None:
        return totals[0] == totals[1]
    if len(a) != len(b):
        return False
    results = [
        same_scalar(x, y) if plain_words(u)[:3] == plain_words(v)[:3] else False for (x, u), (y, v) in zip(a, b, strict=True)
    ]
    return False if False in results else None if None in results else True


def _total(parts: Sequence[tuple[str, str]], unit: str) -> Fraction | None:
    """The sum of quantities in one unit; None if a unit is unknown or measures something else."""
    total = Fraction(0)
    for text, own in parts:
        tree, factor = expression.parse(text), Fraction(1) if own == unit else conversion(own, unit)
        value = None if tree is None else expression.exact(tree)
        if value is None or not factor:
            return None
        total += value * factor
    return total


def _decimal_comma(a: str, b: str) -> bool:
    """Whether one side is `1000,99` and the other `1000.99`; a comma before three digits separates thousands instead."""
    comma, point = (a, b) if "," in a else (b, a)
    is_decimal = re.fullmatch(r"-?(?:\d+,(?!\d{3}$)|0,)\d+", comma) and "." in point
    return bool(is_decimal) and comma.replace(",", ".") == point


def _same_words(answer: str, gold: str) -> bool | None:
    """Compare answers that are words or the letter of a choice; None for formulas."""
    a, b = plain_words(answer), plain_words(gold)
    if any(a in alike and b in alike for alike in _SYNONYMS):
        return True
    choice = re.fullmatch(r"\(?([a-z])\)?", b)
    if choice and gold.strip("⟦⟧() ").isupper():
        found = re.match(r"⟦?\(?([A-Z])(?:[).:⟧]|$)", answer.strip())
        if found:
            return found[1].lower() == choice[1]
    marked = [text.startswith("⟦") and text.endswith("⟧") for text in (answer, gold)]
    wordy = [
        bool(re.fullmatch(r"[a-z][a-z .\-]*[a-z.]", text) and re.search("[a-z]{2}", text)) and "\\" not in raw
        for text, raw in ((a, answer), (b, gold))
    ]
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
    text = text[len(_BEFORE.match(text)[0]) :]  # pyright: ignore[reportOptionalSubscript]
    match = _UNITS.fullmatch(text) or _BARE_UNIT.fullmatch(text)
    if match is None:
        return text, ""
    value = match["value"].rstrip("* ")
    return (value + "%", "") if plain_words(match["unit"]) == "percent" else (value, match["unit"])


def _same_value(x: expression.Node, y: expression.Node, answer: str, gold: str) -> bool | None:
    left, right = expression.exact(x), expression.exact(y)
    tolerance = half_unit(gold)
    for text in filter(_LONG_DECIMAL.fullmatch, (answer, gold)):
        # Twelve or more decimal places mean a rounded value, in an answer or a gold; its error is at least that of a float.
        rounding = max(Fraction(10) ** -len(text.partition(".")[2]), abs(Fraction(text)) / 2**52)
        tolerance = max(tolerance or rounding, rounding)
    if left is not None and right is not None:
        return left == right or (tolerance is not None and abs(left - right) <= tolerance)
    names = sorted(expression.variables(x) | expression.variables(y))
    sure: bool | None = True
    for point in _points(names, expression.rounds(x) or expression.rounds(y)):
        same_here = _same_at(x, y, point, tolerance if not names else None)
        if same_here is False:
            return False
        sure = same_here and sure
    return sure


def half_unit(gold: str) -> Fraction | None:
    """Half a unit in the last place of a decimal gold with three or more significant digits (two in scientific notation).

    Such a gold may be a rounded value. Shorter decimals and integers count as exact (None).
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


def _points(names: Sequence[str], rounded: bool = False) -> list[dict[str, Fraction]]:
    """The points at which formulas are compared: fixed and positive; many large ones if a formula rounds."""
    if not names:
        return [{}]
    scale, count = (7, 30) if rounded else (700, 3)
    return [{name: Fraction(150 + zlib.crc32(f"{name}{k}".encode()) % 1000, scale) for name in names} for k in range(count)]


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
    """Two equations, or inequalities with one sign, are the same if the differences of their sides are proportional."""
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
