"""Parse the structure of a final answer: lists, tuples, sets, intervals, matrices, relations. The leaves remain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from realrl.verifier import expression

_RELATION = re.compile(r"\\(?:le|ge|ne|in|approx|equiv|sim)(?![a-zA-Z])|[=<>]")
# The name before "=": a letter, words, f(x), f'(x), f^{-1}(x), (x, y), AB, [ABC], \angle A, \cos A, dy/dx.
_NAME = re.compile(
    r"(?:⟦[^⟧]*⟧|\\?[a-zA-Z]+|\([a-zA-Z](?:,\s*[a-zA-Z])*\))(?:_(?:\w|\{[^{}]*\}))?(?:\^\{?-1\}?(?=\())?'*"
    r"(?:\([a-zA-Z\d, ]*\))?'*|\\angle\s*[A-Z]+|\[[A-Z]{3,}\]|\|[A-Z]{2}\||"
    r"\\(?:sin|cos|tan|cot|sec|csc|log|ln)\s*\(?\s*(?:\\angle\s*)?\\?[a-zA-Z]+\s*\)?|"
    r"\\frac\s*\{d\s*[a-z]\}\s*\{d\s*[a-z]\}"
)
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}")
_OR = re.compile(r"⟦\s*(?i:or)\s*⟧|(?<![a-zA-Z])or(?![a-zA-Z])")
_MODULUS = re.compile(r"\s*\(?\\(?:pmod|bmod|mod)(?![a-zA-Z])\s*(\{[^{}]*\}|\d+)\)?")
# The unknown of an inequality.
_UNKNOWN = re.compile(r"[a-zA-Z](?:\([a-zA-Z]\))?|\\(?!pi|infty)[a-zA-Z]+")
_DISTANCE = re.compile(r"\|\s*[a-zA-Z]\s*([+-][\s\d./]+)?\|")
_MAX_ITEMS = 60
_MAX_DEPTH = 8
_CLOSE = {"(": ")]", "[": ")]", "\\{": ("\\}",), "{": "}"}


@dataclass(frozen=True)
class Value:
    """A parsed answer: `kind` is scalar, tuple, set, list, union, matrix or relation."""

    kind: str
    text: str = ""
    items: tuple[Value, ...] = ()
    brackets: str = ""
    name: str = ""
    parts: tuple[str, ...] = ()
    modulus: str = ""


def read(text: str, depth: int = 0) -> Value | None:
    """The structure of a normalised answer; None if it is too deep or has too many items."""
    text = text.strip()
    moduli = list(_MODULUS.finditer(text))
    if len(moduli) != 1 or moduli[0].end() != len(text):
        return _read(text, depth)
    value = _read(text[: moduli[0].start()], depth)
    return value and replace(value, modulus=moduli[0][1].strip("{} "))


def _read(text: str, depth: int) -> Value | None:
    if depth > _MAX_DEPTH:
        return None
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
    items = split(text, re.compile(r"[,;]|⟦\s*(?i:,?\s*and|or)\s*⟧|(?<![a-zA-Z])(?:and|or)(?![a-zA-Z])"))
    if len(items) > 1:
        either = "or" if len(split(text, _OR)) == len(items) else ""
        return _read_items("list", [item for item in items if item.strip()], depth, either)
    braced = any(text.startswith(brace) and _closes_at_end(text, brace) for brace in ("\\{", "{"))
    if "\\pm" in text and not braced:
        return _read_items("list", [text], depth)
    relation = _read_relation(text, depth)
    if relation is not None:
        return relation
    items = split(text, re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])"))
    if len(items) == 2 and items[0].strip() == "(-\\infty,\\infty)":
        missing = read(items[1], depth + 1)
        if missing and missing.kind == "set" and (union := _line_without(missing.items)):
            return union
    items = split(text, re.compile(r"\\cup(?![a-zA-Z])"))
    if len(items) > 1:
        return _read_items("union", items, depth)
    return _read_bracketed(text, depth)


def _line_without(points: Sequence[Value]) -> Value | None:
    """The real line without some points, as a union of intervals; None if a point has no real value."""
    values: dict[str, Any] = {}
    for point in points:
        tree = expression.parse(point.text)
        value = None if tree is None else expression.numeric(tree)
        if value is None or value.imag != 0:
            return None
        values[point.text] = value.real
    ends = ["-\\infty", *sorted(values, key=lambda text: values[text]), "\\infty"]
    gaps = zip(ends[:-1], ends[1:], strict=True)
    return Value(
        "union", items=tuple(Value("tuple", items=(Value("scalar", a), Value("scalar", b)), brackets="()") for a, b in gaps)
    )


def _read_items(kind: str, texts: Sequence[str], depth: int, brackets: str = "") -> Value | None:
    if kind in ("list", "set"):
        # Each "±" stands for two items.
        texts = [text.replace("\\pm", sign) for text in texts for sign in ("+-" if "\\pm" in text else "+")]
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
                return _read_builder(inside, depth) or Value("scalar", text)
            # LaTeX does not print bare braces, so their content may be ordered.
            return _read_items("set" if start == "\\{" else "list", [item for item in items if item.strip()], depth)
        if len(items) > 1:
            return _read_items("tuple", items, depth, start + end)
        if start + end == "()":
            return read(inside, depth + 1) if len(inside.strip()) == 1 else Value("scalar", text)
    return Value("scalar", text)


def _read_builder(inside: str, depth: int) -> Value | None:
    """The interval or intervals of a set whose inside is `x | -1 < x < 1`; None for other conditions."""
    match = re.fullmatch(r"\s*([a-zA-Z])\s*(?:\\in[^|:]*)?[|:](.*)", inside, re.DOTALL)
    value = read(match[2], depth + 1) if match else None
    intervals = value.items if value and value.kind == "list" else (value,)
    return value if value and all(item and item.kind == "tuple" and item.brackets for item in intervals) else None


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
    """Split `text` at the separators that are outside all brackets."""
    if not separator.search(text):
        return [text]
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
    """Parse `name = value`, `x \\in S`, chains of inequalities (intervals), other equations and inequalities; else None."""
    parts = [part.strip() for part in split(text, _RELATION)]
    if len(parts) == 1 or not all(parts):
        return None
    signs = [sign for sign in _signs(text, parts)]
    if all(sign in ("=", "\\in", "\\approx", "\\equiv", "\\sim") for sign in signs):
        # The part after the first "≈" is a rounded form of the part before it, unless that part is a name.
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


def _read_distance(parts: Sequence[str], sign: str, depth: int) -> Value | None:
    """`|x - 1| < 2` as an interval, `|x| > 2` as a union; None for other inequalities."""
    match = _DISTANCE.fullmatch(parts[0])
    size = expression.parse(parts[1])
    value = None if size is None else expression.exact(size)
    if match is None or value is None or value <= 0 or sign not in ("<", "\\le", ">", "\\ge"):
        return None
    centre = f"-({match[1]})" if match[1] else "0"
    low, high = f"{centre}-({parts[1]})", f"{centre}+{parts[1]}"
    if sign in ("<", "\\le"):
        return _read_items("tuple", [low, high], depth, "()" if sign == "<" else "[]")
    ends = ("(", ")") if sign == ">" else ("[", "]")
    outer = [("-\\infty", low, "(" + ends[1]), (high, "\\infty", ends[0] + ")")]
    values = [_read_items("tuple", [a, b], depth, brackets) for a, b, brackets in outer]
    return Value("union", items=tuple(value for value in values if value))


def _read_inequality(parts: Sequence[str], signs: Sequence[str], depth: int) -> Value | None:
    if len(parts) == 2 and (value := _read_distance(parts, signs[0], depth)):
        return value
    if all(sign in (">", "\\ge") for sign in signs):
        parts, signs = parts[::-1], [{">": "<", "\\ge": "\\le"}[sign] for sign in signs][::-1]
    if signs == ["\\ne"] and _UNKNOWN.fullmatch(parts[0]) and (union := _line_without([Value("scalar", parts[1])])):
        return replace(union, text="\\ne", parts=tuple(parts))
    if not all(sign in ("<", "\\le") for sign in signs) or len(parts) > 3:
        return Value("relation", " ".join(signs), parts=tuple(parts))
    if len(parts) == 3 and _UNKNOWN.fullmatch(parts[1]):
        low, high, opened, closed = parts[0], parts[2], signs[0], signs[1]
    elif len(parts) == 2 and _UNKNOWN.fullmatch(parts[0]):
        low, high, opened, closed = "-\\infty", parts[1], "<", signs[0]
    elif len(parts) == 2 and _UNKNOWN.fullmatch(parts[1]):
        low, high, opened, closed = parts[0], "\\infty", signs[0], "<"
    else:
        return Value("relation", " ".join(signs), parts=tuple(parts))
    brackets = ("(" if opened == "<" else "[") + (")" if closed == "<" else "]")
    value = _read_items("tuple", [low, high], depth, brackets)
    # Keep the two sides, to compare with an inequality in another form, such as -x > -1.
    return value and (replace(value, text=signs[0], parts=tuple(parts)) if len(parts) == 2 else value)
