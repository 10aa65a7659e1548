"""Unions of intervals and points as sets of real numbers, merged so that equal sets have equal parts."""

from __future__ import annotations

from typing import Any, NamedTuple

from realrl.verifier import expression
from realrl.verifier.structure import Value


class Interval(NamedTuple):
    """The ends of an interval, as numbers with 60 digits, and whether each end belongs to it."""

    low: Any
    high: Any
    with_low: bool
    with_high: bool


def merged(value: Value) -> list[Interval] | None:
    """The sorted, separate intervals of a union, an interval or a set of points; None if an end is not a number."""
    parts = _intervals(value)
    if not parts:
        return None
    parts.sort(key=lambda part: (part.low, not part.with_low))
    result = [parts[0]]
    for part in parts[1:]:
        last = result[-1]
        if part.low < last.high or (part.low == last.high and (part.with_low or last.with_high)):
            with_high = (last.with_high and last.high >= part.high) or (part.with_high and part.high >= last.high)
            result[-1] = Interval(last.low, max(last.high, part.high), last.with_low, with_high)
        else:
            result.append(part)
    return result


def _intervals(value: Value) -> list[Interval] | None:
    if value.kind == "union":
        parts = [_intervals(item) for item in value.items]
        return None if None in parts else [interval for part in parts for interval in part or []]
    ends: list[Any] = [_number(item) for item in value.items]
    if None in ends:
        return None
    if value.kind == "set":
        return [Interval(end, end, True, True) for end in ends]
    if value.kind == "tuple" and len(ends) == 2 and len(value.brackets) == 2 and ends[0] < ends[1]:
        return [Interval(ends[0], ends[1], value.brackets[0] == "[", value.brackets[1] == "]")]
    return None


def _number(value: Value) -> Any | None:
    tree = expression.parse(value.text) if value.kind == "scalar" else None
    number = None if tree is None or expression.variables(tree) else expression.numeric(tree)
    return None if number is None or number.imag else number.real
