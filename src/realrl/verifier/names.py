r"""The names in answers such as `x = 1`, `\cos A = 1/3` or `(x, y) = (1, 2)`: whether they agree, and their usual order."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from realrl.verifier.latex import plain_words
from realrl.verifier.structure import Value
from realrl.verifier.words import phrases_differ

_LETTERS = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega"
_GREEK: Sequence[str] = _LETTERS.split()
_FUNCTION = re.compile(r"(sin|cos|tan|cot|sec|csc|log|ln)(?![a-z])(.*)")
_CALL = re.compile(r"([a-zA-Z]+(?:\^-1)?'*)\((.*)\)")


def names_agree(a: str, b: str) -> bool:
    r"""Whether two names may mean the same: `f(x)` and `y`, or `S` and "area", not `x` and `y`, or `\sin x` and `\cos x`."""
    words = [name for name in (a, b) if name.startswith("⟦")]
    a, b = (re.sub(r"[\s\\{}⟦⟧]|var(?=[a-z])", "", name) for name in (a, b))
    if a == b or a.startswith("("):
        return True
    if a.replace("'", "") == b.replace("'", ""):
        return False
    functions = [_FUNCTION.fullmatch(name) for name in (a, b)]
    if functions[0] and functions[1]:
        return functions[0][1] == functions[1][1] and functions[0][2].strip("()") == functions[1][2].strip("()")
    if any(functions):
        return True
    calls = [_CALL.fullmatch(name) for name in (a, b)]
    if calls[0] and calls[1]:
        # Only the letter of an argument may differ.
        return calls[0][1] == calls[1][1] and (calls[0][2] == calls[1][2] or all(call[2].isalpha() for call in calls if call))
    if a in _GREEK and b in _GREEK:
        return False
    if len(a) > 1 and len(b) > 1 and all(re.fullmatch(r"(angle)?[\[|]?[A-Z]+[\]|]?", name) for name in (a, b)):
        return _same_figure(*(re.sub(r"[^A-Z]", "", name) for name in (a, b)))
    if len(words) == 2 and phrases_differ(a, b):
        return False
    a, b = (plain_words(name).replace(" ", "") for name in (a, b))
    return a == b or len(a) > 1 or len(b) > 1


def _same_figure(a: str, b: str) -> bool:
    """Compare segments, triangles and angles by their corners; an angle may have only its vertex as name."""
    if len(a) == len(b):
        return sorted(a) == sorted(b)
    short, long = sorted((a, b), key=len)
    return len(long) == 3 and short == long[1]


def by_name(value: Value) -> dict[str, Value]:
    """The items of `x = 1, y = 2` or `(x, y) = (1, 2)` by their letters; empty if the items have no names."""
    if value.kind == "tuple" and value.name.startswith("("):
        names = [name.strip() for name in value.name.strip("()").split(",")]
    elif value.kind == "list":
        names = [item.name.removeprefix("\\") for item in value.items]
    else:
        return {}
    fit = len(names) == len(value.items) == len(set(names)) and all(
        name in _GREEK or re.fullmatch("[a-zA-Z]", name) for name in names
    )
    return dict(zip(names, value.items, strict=True)) if fit else {}


def usual_order(names: Collection[str]) -> list[str] | None:
    """The usual order of letters in a tuple without names (x before y); None if there is none, as for `m` and `b`."""
    if all(name in _GREEK for name in names):
        return sorted(names, key=_GREEK.index)
    ordered = sorted(names)
    if any(len(name) > 1 for name in ordered):
        return None
    return ordered if set(ordered) <= set("xyz") or ord(ordered[-1]) - ord(ordered[0]) == len(ordered) - 1 else None
