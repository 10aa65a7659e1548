r"""Normalise the notation of an answer: Unicode, LaTeX spacing and styles, dollar signs, thousands separators.

In the result, `⟦…⟧` marks words from `\text{…}` and similar commands; `°` and `%` replace their LaTeX commands.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# "½", "¼", "⅞" and similar characters, as LaTeX.
_VULGAR = {
    chr(code): "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", chr(code)).split("⁄"))
    for code in (*range(0xBC, 0xBF), *range(0x2150, 0x215F), 0x2189)
}
_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "≤": "\\le ", "≥": "\\ge ", "π": "\\pi ", "∞": "\\infty ",
        "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ", "±": "\\pm ", "√": "\\sqrt ", "θ": "\\theta ", "≈": "\\approx ", "’": "'",
        "²": "^2", "³": "^3", "∅": "\\emptyset ", "≠": "\\ne ", "⁄": "/", "‐": "-", "‑": "-", "‒": "-", "—": "-", "－": "-",
        "（": "(", "）": ")", "，": ",", "。": ".", "；": ";", "：": ":", "、": ",", "⟨": "(", "⟩": ")",
        "∨": "\\lor ", "∧": "\\land ", "\u2009": " ", "\u202f": " ", "\xa0": " ",
    }
    | _VULGAR
)  # fmt: skip
_WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|up|md|normal)?|emph|math(?:rm|bf|bb|cal|it|sf|tt|normal)|boldsymbol|bm|pmb|underline|mbox|hbox|rm|"
    r"operatorname)(?![a-zA-Z])\*?\s*"
)
_BOLD = re.compile(r"\\(?:mathbf|boldsymbol|bm|pmb)(?![a-zA-Z])")
# Commands and symbols that only change how an answer looks.
_LOOKS = re.compile(
    r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:[hv]space|tag|label)\*?\s*\{[^{}]*\}|"
    r"\\(?:(?:display|text|script)style|bfseries|bf|it|sf|tt|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge|checkmark|qed|blacksquare|strut)"
    r"(?![a-zA-Z])|[✓✔✅∎■`]|(?<![\^_a-zA-Z}\]])\{\s*\}"
)
_NUMBER_WORDS = dict(
    zero=0, one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11, twelve=12, thirteen=13,
    fourteen=14, fifteen=15, sixteen=16, seventeen=17, eighteen=18, nineteen=19, twenty=20,
)  # fmt: skip
_INTEGER_LETTER = re.compile(
    r"(?<![a-zA-Z\\])([a-zA-Z])\s{0,3}\\in\s{0,3}(?:\\math(?:bb|bf)\s{0,3}\{?\s{0,3}Z\s{0,3}\}?|ℤ)[\s$)]{0,3}$"
)
_TEXT_AT_END = re.compile(r"(?:\\q?quad|\\text\s{0,3}\{[^{}]{0,40}\})$")


def _digits(match: re.Match[str]) -> str:
    return str(_NUMBER_WORDS[match[1].lower()])


# Replacements before words are marked: names of sets, Python's fractions, Chinese words.
_FIRST = [
    (re.compile(rule), by)
    for rule, by in (
        (r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\^\s*\{?\+\}?|_\s*\{\s*>\s*0\s*\})", r"(0,\\infty)"),
        (r"\\mathbb\s*\{?\s*R(?![a-zA-Z])\s*\}?|ℝ|\\R(?![a-zA-Z])|^all (?:real numbers|reals)$", r"(-\\infty,\\infty)"),
        (r"\\[lr]angle(?![a-zA-Z])", lambda match: "(" if match[0] == "\\langle" else ")"),
        (r"\b(?:Fraction|Rational)\((-?\d+),\s*(\d+)\)", r"\\frac{\1}{\2}"),
        (r"(?<![a-zA-Z\\])C\((\d+),\s*(\d+)\)", r"\\binom{\1}{\2}"),
        (r"^\(?([-+]?[\d.]+[-+][\d.]*)j\)?$", r"\1i"),
        # "For all x" without a condition on x.
        (
            r"(?<=\S)[,;]?\s{0,3}(?:\\text\s{0,3}\{\s{0,3}for (?:all|any|every|each)(?: real)?\s{0,3}\}|\\forall|for all)"
            r"\s{0,3}\$?[a-zA-Z]\$?\s{0,3}(?:\\in\s{0,3}\(-\\infty,\\infty\))?$",
            "",
        ),
        (rf"^(?:\\text\s?\{{)?(?i:({'|'.join(_NUMBER_WORDS)}))\}}?$", _digits),
        (r"或|\\lor(?![a-zA-Z])", r"\\text{or}"),
        (r"[且和与]|\\land(?![a-zA-Z])", r"\\text{and}"),
        (r"(?<![\u4e00-\u9fff{])[\u4e00-\u9fff]+(?![\u4e00-\u9fff}])", r"\\text{\g<0>}"),
    )
]
_EMPHASIS = re.compile(r"(\*\*|__)(.+)\1", re.DOTALL)
_NUMBER_WITH_WORDS = re.compile(r"([a-zA-Z][a-zA-Z .]*\s)?\s*([-+]?\d[\d.,/ ]*%?)(\s*[a-zA-Z][a-zA-Z .]*)?")
_TIMES = {
    "dozen": "12",
    "hundred": "10^{2}",
    "thousand": "10^{3}",
    "million": "10^{6}",
    "billion": "10^{9}",
    "trillion": "10^{12}",
}


def _multiplied(match: re.Match[str]) -> str:
    return f"*{_TIMES[match[1]]}" + ("⟦" if "⟦" in match[0] else " ")


_RULES = [
    (re.compile(rule), by)
    for rule, by in (
        (r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", ""),
        (r"(?<=\d)\s*⟦?\s*(hundred|thousand|million|billion|trillion|dozen)(?![a-zA-Z])\s*", _multiplied),
        (r"⟦⟧", ""),
        (r"^⟦?(?i:(?:the )?(?:final )?(?:answer|result|solution|value)s? (?:is|are)):?\s*⟧?\s*(?=\S)", ""),
        (r"[€£¥₹₩]|\b(?:USD|EUR|GBP|INR|Rs\.?)\s*(?=\d)", ""),
        (r"⟦\(?\s*mod\s*⟧|(?<=[\s(])mod(?=\s+\d)", r"\\mod "),
        (r"⟦(?:negative|minus)⟧\s*(?=[\d\\(])|\b(?:negative|minus) (?=\d)", "-"),
        # Without sec, which is also a unit.
        (r"⟦(arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|csc|log|ln|exp)⟧(?=\s*[\w({\\^])", r"\\\1 "),
        (r"\\d?frac\s*\{⟦([^⟧\d]*)⟧\}\s*\{⟦([^⟧\d]*)⟧\}", r"⟦\1/\2⟧"),
        (r"\\[()\[\]]|\\\$|\$", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (r"\\[dtc](frac|binom)(?![a-zA-Z])", r"\\\1"),
        (r"\\frac\s*(?:(\d)|\{\s*(\d+)\s*\})\s*(?:(\d)|\{\s*(\d+)\s*\})", r"\\frac{\1\2}{\3\4}"),
        (r"\\[,;:> ]|~", " "),
        # The rules below start a match at each space of a run, and three spaces mean the same as a longer run.
        (r"\s{4,}", "   "),
        (rf"(?<=_)\{{?⟦({'|'.join(_NUMBER_WORDS)})⟧\}}?$", _digits),
        (r"(?<=\d)\s*\^?\s*\{?\s*⟦?(?:st|nd|rd|th)⟧?\s*\}?(?![a-zA-Z])", ""),
        (
            r"(?<![\d.,])(?<!\{,\})[1-9]\d{0,2}(?:\s*(?:\{,\s*\}|,\\!|\\!,)\s*\d{3})+(?!\d)",
            lambda match: re.sub(r"\D", "", match[0]),
        ),
        (r"\s*\{,\s*\}\s*|,\\!\s*|\\!,", ","),
        (r"!=", r"\\ne "),
        (r"\\?%|\b(?:pct|percentage|percent)\b", "%"),
        (r"(?<![\d./^])(\d+) (\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
        (r"(?<![\d.,])(\d{1,3}(?: \d{3})+)(?![\d,])", lambda match: match[1].replace(" ", "")),
        (r"\\(?:quad|qquad)(?![a-zA-Z])|\\!", " "),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degrees?(?![a-zA-Z])|\\circ(?![a-zA-Z])", "°"),
        (r"(?<=[\d)}])\s*⟦?(?:deg|degrees?)⟧?(?=\s*(?:$|[)}]))", "°"),
        (r"\\(?:leq|leqslant)(?![a-zA-Z])|<=", r"\\le "),
        (r"\\(?:geq|geqslant)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:neq)(?![a-zA-Z])", r"\\ne "),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])", "*"),
        (r"\*\*", "^"),
        (r"\\div(?![a-zA-Z])", "/"),
        (r"\\(?:mid|vert|lvert|rvert|lVert|rVert)(?![a-zA-Z])", "|"),
        (r"\bnp\.|\bmath\.", ""),
    )
]
# Brackets, and digits in groups of three with commas between them.
_BRACKET_OR_GROUPS = re.compile(r"\\[{}]|[()\[\]{}]|(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)")
# A single upright letter is a variable, but after a number it is a unit.
_LETTER = re.compile(r"(?<![\d)}\s])⟦([a-zA-Z])⟧")
_BOX = re.compile(r"\\(?:boxed|fbox)\{(.*)\}", re.DOTALL)
_MAX_LENGTH = 10_000


# The cache normalises a gold answer once for all responses to its problem.
@lru_cache(maxsize=1024)
def normalise(text: str) -> str:
    """`text` in normalised notation, with its structure (braces, brackets, commas); never raises.

    Only the first 10,000 characters are read, which bounds the time.
    """
    text = text[:_MAX_LENGTH].strip()
    while (box := _BOX.fullmatch(text)) or (box := _EMPHASIS.fullmatch(text)):
        text = box[box.lastindex or 0].strip()
    # A double backslash separates the rows of a matrix; elsewhere it is a backslash that was escaped twice.
    text = text.replace("\\\\", "⏎" if "\\begin" in text else "\\")
    text = text.translate(_UNICODE)
    text = _family(text)
    # Most rules match nothing, and `search` finds that out faster than `sub`.
    for rule, by in _FIRST:
        if rule.search(text):
            text = rule.sub(by, text)
    text = _mark_words(_LOOKS.sub("", text).strip())
    for rule, by in _RULES:
        if rule.search(text):
            text = rule.sub(by, text)
    text = _LETTER.sub(r"\1", " ".join(text.split()).strip().rstrip("\\"))
    text = text.rstrip(".,;: ") if not text.endswith("\\.") else text
    return _join_groups(text)


def _family(text: str) -> str:
    r"""`n\pi, n \in \mathbb{Z}` → `k\pi`: give the integer in a family of answers one name."""
    found = _INTEGER_LETTER.search(text) if "Z" in text or "ℤ" in text else None
    if found is None:
        return text
    before = _TEXT_AT_END.sub("", text[: found.start()].rstrip(" ,;(")).rstrip(" ,;(")
    letter = re.compile(rf"(?<![\\a-zA-Z]){found[1]}(?![a-zA-Z])")
    if not letter.search(before):
        return text
    return before if re.search(r"(?<![\\a-zA-Z])k(?![a-zA-Z])", before) else letter.sub("k", before)


def _join_groups(text: str) -> str:
    r"""`2,220\pi` → `2220\pi`; not inside the brackets of a tuple or set, or in a subscript, where a comma separates items."""
    if ";" in text:
        return text
    parts, opened, last = [], [], 0
    for match in _BRACKET_OR_GROUPS.finditer(text):
        symbol = match[0]
        if symbol in ("(", "[", "{", "\\{"):
            opened.append("_" if symbol == "{" and text[: match.start()].endswith("_") else symbol)
        elif symbol in (")", "]", "}", "\\}"):
            del opened[-1:]
        elif not opened or opened[-1] == "{":
            parts += [text[last : match.start()], symbol.replace(",", "")]
            last = match.end()
    return "".join([*parts, text[last:]])


def _mark_words(text: str) -> str:
    r"""`\text{ cm}` → `⟦cm⟧`; drops commands without a brace, and up to three font commands around a text command."""
    parts, position, faces = [], 0, 0
    while match := _WORDS.search(text, position):
        parts.append(text[position : match.start()])
        position = match.end()
        if position < len(text) and text[position] == "{":
            end = closing_brace(text, position)
            if faces < 3 and not match[0].startswith("\\text") and _WORDS.search(text, position, end):
                faces += 1
                continue
            inside = text[position + 1 : end].strip()
            # A single bold letter is a vector, not a unit; bold text with an operator is a formula.
            formula = _BOLD.match(match[0]) and ((inside.isalpha() and len(inside) == 1) or re.search(r"[\^+*/=<>]", inside))
            parts.append(f" {inside} " if formula else _marked(inside))
            position = end + 1
    return "".join([*parts, text[position:]])


def _marked(text: str) -> str:
    """The content of a text command, marked as words unless it is a formula."""
    if re.search(r"\d", text) and not re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)):
        return f"{{{text.rstrip('.,;: ')}}}"
    if found := _NUMBER_WITH_WORDS.fullmatch(text):
        before, number, after = (part.strip() if part else "" for part in found.groups())
        return " ".join(part for part in (before and f"⟦{before}⟧", number, after and f"⟦{after}⟧") if part)
    return f"⟦{text.rstrip('.,;: ')}⟧" if text[:-1].isalpha() else f"⟦{text}⟧"


def closing_brace(text: str, start: int) -> int:
    """The index of the brace that closes the one at `start`, or the length of the text."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "{}":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position
    return len(text)


def plain_words(text: str) -> str:
    """Lower-case text without marks and markup, to compare answers that are words."""
    return " ".join(re.sub(r"[⟦⟧{}\\_]", " ", text).replace("'", "").lower().split())
