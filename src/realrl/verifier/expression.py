r"""Parse closed formulas within bounds and evaluate them, exactly (`Fraction`) or to 60 digits. Nothing runs as code.

The grammar covers final answers: numbers, letters, `+ - * / ^ !`, fractions, roots, binomials, logarithms, trigonometry.
Anything outside the grammar or the bounds gives None ("unknown"), never a guess.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

# Formulas beyond these bounds are not parsed. The bounds keep one evaluation within milliseconds.
MAX_TOKENS = 300
MAX_DEPTH = 60
MAX_DIGITS = 2000
MAX_BITS = 200_000
MAX_FACTORIAL = 5000

Node = tuple[Any, ...]

_FUNCTIONS = tuple(
    "arcsin arccos arctan arccot sinh cosh tanh asin acos atan sin cos tan cot sec csc log ln lg exp sqrt".split()  # noqa: SIM905
)
_TOKEN = re.compile(
    r"(?P<number>\d+(?:\.\d*)?[eE][+-]?\d{1,4}(?![\d.a-zA-Z])|\d+\.\d+|\d*\.(?=\s?\\overline)|\d+\.(?=[/*])|\.\d+|\d+)|(?P<command>\\[a-zA-Z]+|\\[{}|])|"
    rf"(?P<word>(?:{'|'.join(_FUNCTIONS)}|pi|infinity|inf)(?![a-z]))|(?P<letter>[a-zA-Z])|(?P<sign>[-+*/^!()\[\]{{}}|_,'=°])|\s+|(?P<bad>.)",
    re.DOTALL,
)
_KNOWN = re.compile(rf"\\[a-zA-Z]+|{'|'.join(_FUNCTIONS)}|pi|infinity|inf|_\{{[^{{}}]*\}}")
_WORD = re.compile(r"[a-zA-Z]{5}")
_GREEK = set(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau upsilon phi "  # noqa: SIM905
    "varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell hbar".split()
)
_MPMATH_NAMES = {"lg": "log10", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "abs": "fabs"}


class _Unreadable(Exception):
    """The text is not a formula of this grammar, or exceeds the bounds."""


@lru_cache(maxsize=4096)
def parse(text: str) -> Node | None:
    """The syntax tree of a normalised formula; None if it is not a formula. Five or more letters in a row are a word."""
    if _WORD.search(_KNOWN.sub(" ", text)):
        return None
    tokens = []
    for match in _TOKEN.finditer(text):
        if match.lastgroup == "bad" or len(tokens) > MAX_TOKENS or len(match[0]) > MAX_DIGITS:
            return None
        if match.lastgroup:
            tokens.append((match.lastgroup, match[0]))
    if not tokens:
        return None
    try:
        parser = _Parser(tokens)
        node = parser.sum()
        return node if parser.position == len(tokens) else None
    except (_Unreadable, RecursionError):
        return None


class _Parser:
    """Recursive descent over (kind, text) tokens."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = tokens
        self.position = 0
        self.depth = 0
        self.bars = 0

    def peek(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.position][0] if self.position < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        text = self.peek()
        if not text or (wanted and text not in wanted):
            raise _Unreadable
        self.position += 1
        return text

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable
        node = self.product()
        while self.peek() in ("+", "-") and self.peek():
            sign = self.take()
            right = self.product()
            node = ("add", node, right if sign == "+" else ("neg", right))
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.peek() in ("*", "/") and self.peek():
                sign = self.take()
                node = ("mul" if sign == "*" else "div", node, self.signed())
            elif self.starts_atom():
                node = ("mul", node, self.power())
            else:
                return node

    def signed(self) -> Node:
        negative = False
        while self.peek() in ("+", "-") and self.peek():
            negative ^= self.take() == "-"
        start = self.position
        node = self.power()
        if self.position == start + 1 and self.tokens[start][1].isdigit():
            node = self.mixed_number(node)
        return ("neg", node) if negative else node

    def mixed_number(self, whole: Node) -> Node:
        r"""`2\frac{1}{3}` is two and a third, not a product."""
        texts = [text for _, text in self.tokens[self.position : self.position + 8]]
        if texts[:2] != ["\\frac", "{"] or texts[3:5] != ["}", "{"] or texts[6:7] != ["}"] or texts[7:] in (["^"], ["!"]):
            return whole
        top, bottom = texts[2], texts[5]
        if not (top.isdigit() and bottom.isdigit() and 0 < int(top) < int(bottom)):
            return whole
        self.position += 7
        return ("add", whole, ("num", Fraction(int(top), int(bottom))))

    def starts_atom(self) -> bool:
        kind, text = self.kind(), self.peek()
        if kind in ("number", "letter", "word"):
            return True
        if kind == "command":
            return text not in ("\\}", "\\rfloor", "\\rceil")
        return text in ("(", "[", "{") or (text == "|" and not self.bars)

    def power(self) -> Node:
        node = self.atom()
        while self.peek() in ("!", "^", "'", "°") and self.peek():
            sign = self.take()
            if sign == "'":
                raise _Unreadable
            if sign == "°":
                node = ("mul", node, ("div", ("const", "pi"), ("num", Fraction(180))))
                continue
            node = ("fact", node) if sign == "!" else ("pow", node, self.exponent())
        return node

    def exponent(self) -> Node:
        if self.peek() == "{":
            return self.group("{", "}")
        negative = False
        while self.peek() in ("+", "-") and self.peek():
            negative ^= self.take() == "-"
        node = self.atom()
        if self.peek() == "^":
            self.take()
            node = ("pow", node, self.nested_exponent())
        return ("neg", node) if negative else node

    def nested_exponent(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable
        node = self.exponent()
        self.depth -= 1
        return node

    def group(self, start: str, end: str) -> Node:
        self.take(start)
        bars, self.bars = self.bars, 0
        node = self.sum()
        self.bars = bars
        self.take(end)
        return node

    def argument(self) -> Node:
        r"""An argument of `\frac` or `\binom`: a group, or a single digit or letter."""
        if self.peek() == "{":
            return self.group("{", "}")
        kind, text = self.kind(), self.peek()
        if kind == "number" and len(text) > 1:
            if not text.isdigit():
                raise _Unreadable
            self.tokens[self.position] = (kind, text[1:])
            return ("num", Fraction(int(text[0])))
        return self.atom()

    def atom(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unreadable
        node = self.unit()
        self.depth -= 1
        return node

    def unit(self) -> Node:
        kind, text = self.kind(), self.peek()
        if kind == "number":
            self.take()
            return self.number(text)
        if kind == "letter":
            self.take()
            return self.letter(text)
        if kind in ("command", "word"):
            return self.command()
        if text in ("(", "[", "{"):
            return self.group(text, {"(": ")", "[": "]", "{": "}"}[text])
        if text == "|":
            self.take()
            bars, self.bars = self.bars, 1
            node = self.sum()
            self.bars = bars
            self.take("|")
            return ("call", "abs", node)
        raise _Unreadable

    def number(self, text: str) -> Node:
        value = Fraction(text + "0" if text.endswith(".") else text)
        # A repeating decimal: 0.\overline{36}.
        if self.peek() == "\\overline" and "." in text + ".":
            self.take()
            self.take("{")
            digits = self.take()
            self.take("}")
            if not digits.isdigit() or "e" in text.lower():
                raise _Unreadable
            places = len(text.partition(".")[2])
            value += Fraction(int(digits), (10 ** len(digits) - 1) * 10**places)
        return ("num", value)

    def letter(self, text: str) -> Node:
        name = text + self.subscript()
        return ("const", name) if name in ("e", "i") else ("var", name)

    def subscript(self) -> str:
        if self.peek() != "_":
            return ""
        self.take()
        if self.peek() != "{":
            return "_" + self.take()
        self.take()
        parts = []
        while self.peek() != "}":
            parts.append(self.take())
        self.take()
        return "_" + "".join(parts)

    def command(self) -> Node:
        name = self.take().removeprefix("\\")
        if name in ("frac", "binom"):
            first = self.argument()
            return ("div" if name == "frac" else "binom", first, self.argument())
        if name == "sqrt":
            return self.root()
        if name in _FUNCTIONS:
            return self.function(name)
        if name in ("pi", "infty", "infinity", "inf"):
            return ("const", "pi" if name == "pi" else "inf")
        if name in ("lfloor", "lceil"):
            node = self.sum()
            self.take("\\r" + name[1:])
            return ("call", name[1:], node)
        if name == "mathrm" or name == "|":
            raise _Unreadable
        if name in _GREEK:
            return ("var", name + self.subscript())
        raise _Unreadable

    def root(self) -> Node:
        degree: Node = ("num", Fraction(2))
        if self.peek() == "[":
            degree = self.group("[", "]")
        # `\sqrt12` means the root of twelve.
        inside = self.group("{", "}") if self.peek() == "{" else self.atom()
        return (
            ("pow", inside, ("div", ("num", Fraction(1)), degree))
            if degree != ("num", Fraction(2))
            else ("call", "sqrt", inside)
        )

    def function(self, name: str) -> Node:
        base, exponent = None, None
        while self.peek() in ("_", "^") and self.peek():
            if self.take() == "_":
                base = self.argument() if self.peek() == "{" else self.atom()
            else:
                exponent = self.exponent()
        if self.peek() in ("(", "[", "{"):
            inside = self.power() if self.peek() != "{" else self.group("{", "}")
        else:
            inside = self.signed()
            while self.starts_atom() and self.peek().removeprefix("\\") not in _FUNCTIONS and self.peek() not in ("(", "["):
                inside = ("mul", inside, self.power())
        node: Node = ("call", name, inside)
        if base is not None:
            if name != "log":
                raise _Unreadable
            node = ("div", ("call", "ln", inside), ("call", "ln", base))
        if exponent == ("neg", ("num", Fraction(1))):
            if "arc" + name not in _FUNCTIONS:
                raise _Unreadable
            return ("call", "arc" + name, inside)
        return node if exponent is None else ("pow", node, exponent)


def variables(node: Node) -> set[str]:
    """Names of the free variables."""
    if node[0] == "var":
        return {node[1]}
    return set().union(*[variables(part) for part in node[1:] if isinstance(part, tuple)])


def rounds(node: Node) -> bool:
    """Whether a floor or a ceiling is part of the formula."""
    return node[:2] in (("call", "floor"), ("call", "ceil")) or any(
        rounds(part) for part in node[1:] if isinstance(part, tuple)
    )


# Comparing two lists compares all pairs of items; the cache evaluates each item once.
@lru_cache(maxsize=256)
def exact(node: Node) -> Fraction | None:
    """The value as a fraction if the formula is rational arithmetic within the bounds, else None."""
    try:
        return _exact(node)
    except (_Unreadable, ZeroDivisionError, OverflowError, RecursionError):
        return None


def _exact(node: Node) -> Fraction:
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind in ("add", "mul", "div", "neg"):
        values = [_exact(part) for part in node[1:]]
        if kind == "neg":
            return -values[0]
        result = values[0] + values[1] if kind == "add" else values[0] * values[1] if kind == "mul" else values[0] / values[1]
        return _bounded(result)
    if kind == "pow":
        base, power = _exact(node[1]), _exact(node[2])
        size = max(base.numerator.bit_length(), base.denominator.bit_length())
        if power.denominator != 1 or abs(power.numerator) * size > MAX_BITS:
            return _exact_root(base, power)
        return base**power.numerator
    if kind == "fact":
        count = _exact(node[1])
        if count.denominator != 1 or not 0 <= count <= MAX_FACTORIAL:
            raise _Unreadable
        return Fraction(math.factorial(count.numerator))
    if kind == "binom":
        n, k = _exact(node[1]), _exact(node[2])
        if n.denominator != 1 or k.denominator != 1 or not 0 <= k <= n <= MAX_FACTORIAL:
            raise _Unreadable
        return Fraction(math.comb(n.numerator, k.numerator))
    if kind == "call" and node[1] == "sqrt":
        return _exact_root(_exact(node[2]), Fraction(1, 2))
    if kind == "call" and node[1] in ("abs", "floor", "ceil"):
        value = _exact(node[2])
        return abs(value) if node[1] == "abs" else Fraction(math.floor(value) if node[1] == "floor" else math.ceil(value))
    raise _Unreadable


def _exact_root(base: Fraction, power: Fraction) -> Fraction:
    if power != Fraction(1, 2) or base < 0:
        raise _Unreadable
    top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
    if top * top != base.numerator or bottom * bottom != base.denominator:
        raise _Unreadable
    return Fraction(top, bottom)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _Unreadable
    return value


@lru_cache(maxsize=1)
def _context() -> Any:
    """A private mpmath context with 60 digits; other threads would share the library's global one."""
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.dps = 60
    return context


def numeric(node: Node, values: dict[str, Fraction] | None = None) -> Any | None:
    """The value to 60 digits (an mpmath number) with `values` for the variables; None if it is undefined or unknown."""
    return _numeric_at(node, tuple((values or {}).items()))


@lru_cache(maxsize=1024)
def _numeric_at(node: Node, values: tuple[tuple[str, Fraction], ...]) -> Any | None:
    mp = _context()
    try:
        result = _numeric(mp, node, dict(values))
    except (_Unreadable, ArithmeticError, ValueError, KeyError, TypeError, RecursionError):
        return None
    except Exception as error:  # noqa: BLE001  mpmath's NoConvergence derives from Exception alone
        if type(error).__name__ == "NoConvergence":
            return None
        raise
    return None if mp.isnan(result) else result


def finite(value: Any) -> bool:
    """Whether a value from `numeric` is finite."""
    return bool(_context().isfinite(value))


def _numeric(mp: Any, node: Node, values: dict[str, Fraction]) -> Any:
    kind = node[0]
    if kind == "num" or kind == "var":
        value = node[1] if kind == "num" else values[node[1]]
        return mp.mpf(value.numerator) / value.denominator
    if kind == "const":
        return {"e": mp.e, "pi": mp.pi, "i": mp.j, "inf": mp.inf}[node[1]] * mp.one
    parts = [_numeric(mp, part, values) for part in node[1:] if isinstance(part, tuple)]
    if kind == "add":
        result = parts[0] + parts[1]
    elif kind == "neg":
        result = -parts[0]
    elif kind == "mul":
        result = parts[0] * parts[1]
    elif kind == "div":
        result = parts[0] / parts[1]
    elif kind == "pow":
        _check_power(mp, parts[0], parts[1])
        result = _power(mp, parts[0], parts[1], exact(node[2]))
    elif kind == "fact" or kind == "binom":
        if any(abs(part) > 10**6 for part in parts):
            raise _Unreadable
        result = mp.factorial(parts[0]) if kind == "fact" else mp.binomial(*parts)
    else:
        result = _call(mp, node[1], parts[0])
    if mp.isfinite(result) and result != 0 and abs(mp.mag(result)) > 10 * MAX_BITS:
        raise _Unreadable
    return result


def _power(mp: Any, base: Any, power: Any, fraction: Fraction | None) -> Any:
    """A power; for a negative base and an exponent with an odd denominator, the real root instead of the principal one."""
    if (
        fraction is None
        or fraction.denominator % 2 == 0
        or fraction.denominator == 1
        or not (mp.im(base) == 0 and mp.re(base) < 0)
    ):
        return mp.power(base, power)
    return mp.power(-mp.re(base), power) * (-1 if fraction.numerator % 2 else 1)


def _check_power(mp: Any, base: Any, power: Any) -> None:
    """Raise _Unreadable if the result would need more than about two million bits."""
    if not (mp.isfinite(base) and mp.isfinite(power)) or base == 0:
        return
    if abs(power) * (abs(mp.mag(base)) + 2) > 10 * MAX_BITS:
        raise _Unreadable


def _call(mp: Any, name: str, value: Any) -> Any:
    if mp.isfinite(value) and value != 0 and mp.mag(value) > (25 if name in ("exp", "sinh", "cosh") else 4000):
        raise _Unreadable
    if name in ("floor", "ceil"):
        return mp.floor(value) if name == "floor" else mp.ceil(value)
    return getattr(mp, _MPMATH_NAMES.get(name, name))(value)
