r"""One spelling for what is written in many: Unicode, LaTeX spacing and styles, dollar signs, thousands separators.

`⟦…⟧` marks words that stood in `\text{…}` and the like; `°` and `%` stand for their LaTeX commands.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# "½", "¼", "⅞" and their like, as LaTeX.
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
# What only changes how an answer looks.
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


# What becomes of a text before its words are marked: names of sets, Python's fractions, Chinese words.
_FIRST = [
    (re.compile(rule), by)
    for rule, by in (
        (r"\\mathbb\s*\{?\s*R\s*\}?\s*(?:\^\s*\{?\+\}?|_\s*\{\s*>\s*0\s*\})", r"(0,\\infty)"),
        (r"\\mathbb\s*\{?\s*R(?![a-zA-Z])\s*\}?|ℝ|\\R(?![a-zA-Z])|^all (?:real numbers|reals)$", r"(-\\infty,\\infty)"),
        (r"\\[lr]angle(?![a-zA-Z])", lambda match: "(" if match[0] == "\\langle" else ")"),
        (r"\b(?:Fraction|Rational)\((-?\d+),\s*(\d+)\)", r"\\frac{\1}{\2}"),
        (r"(?<![a-zA-Z\\])C\((\d+),\s*(\d+)\)", r"\\binom{\1}{\2}"),
        (r"^\(?([-+]?[\d.]+[-+][\d.]*)j\)?$", r"\1i"),
        # What holds for all of a letter that has no condition.
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
        # Not sec, which is also a unit.
        (r"⟦(arcsin|arccos|arctan|arccot|sinh|cosh|tanh|sin|cos|tan|cot|csc|log|ln|exp)⟧(?=\s*[\w({\\^])", r"\\\1 "),
        (r"\\d?frac\s*\{⟦([^⟧\d]*)⟧\}\s*\{⟦([^⟧\d]*)⟧\}", r"⟦\1/\2⟧"),
        (r"\\[()\[\]]|\\\$|\$", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?", ""),
        (r"\\[dtc](frac|binom)(?![a-zA-Z])", r"\\\1"),
        (r"\\frac\s*(?:(\d)|\{\s*(\d+)\s*\})\s*(?:(\d)|\{\s*(\d+)\s*\})", r"\\frac{\1\2}{\3\4}"),
        (r"\\[,;:> ]|~", " "),
        # The rules below try a run of spaces at each of its places; none means more by a long run than by three.
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
# A letter set upright is a letter; after a number it is a unit.
_LETTER = re.compile(r"(?<![\d)}\s])⟦([a-zA-Z])⟧")
_BOX = re.compile(r"\\(?:boxed|fbox)\{(.*)\}", re.DOTALL)
_MAX_LENGTH = 10_000


# A gold is read once for all responses to its problem.
@lru_cache(maxsize=1024)
def normalise(text: str) -> str:
    """`text` in one spelling; never raises. Structure (braces, brackets, commas) is kept.

    Of a text longer than any answer only the start is read, which bounds the time.
    """
    text = text[:_MAX_LENGTH].strip()
    while (box := _BOX.fullmatch(text)) or (box := _EMPHASIS.fullmatch(text)):
        text = box[box.lastindex or 0].strip()
    # Row separators of a matrix; elsewhere a doubled backslash is one that was escaped twice.
    text = text.replace("\\\\", "⏎" if "\\begin" in text else "\\")
    text = text.translate(_UNICODE)
    text = _family(text)
    # Most rules match nothing, which `search` says faster than `sub`.
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
    r"""`n\pi, n \in \mathbb{Z}` → `k\pi`: the whole number of a family of answers goes by one name."""
    found = _INTEGER_LETTER.search(text) if "Z" in text or "ℤ" in text else None
    if found is None:
        return text
    before = _TEXT_AT_END.sub("", text[: found.start()].rstrip(" ,;(")).rstrip(" ,;(")
    letter = re.compile(rf"(?<![\\a-zA-Z]){found[1]}(?![a-zA-Z])")
    if not letter.search(before):
        return text
    return before if re.search(r"(?<![\\a-zA-Z])k(?![a-zA-Z])", before) else letter.sub("k", before)


def _join_groups(text: str) -> str:
    r"""`2,220\pi` → `2220\pi`. Inside of brackets that are read as a tuple or a set, and in a subscript, a comma separates."""
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
    r"""`\text{ cm}` → `⟦cm⟧`; a command without a brace after it is dropped, and so are three faces around words."""
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
            # A bold letter is a vector, and no unit; what is bold and has an operator is a formula.
            formula = _BOLD.match(match[0]) and ((inside.isalpha() and len(inside) == 1) or re.search(r"[\^+*/=<>]", inside))
            parts.append(f" {inside} " if formula else _marked(inside))
            position = end + 1
    return "".join([*parts, text[position:]])


def _marked(text: str) -> str:
    """The inside of a text command, marked as words where it is not a formula in another face."""
    if re.search(r"\d", text) and not re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text)):
        return f"{{{text.rstrip('.,;: ')}}}"
    if found := _NUMBER_WITH_WORDS.fullmatch(text):
        before, number, after = (part.strip() if part else "" for part in found.groups())
        return " ".join(part for part in (before and f"⟦{before}⟧", number, after and f"⟦{after}⟧") if part)
    return f"⟦{text.rstrip('.,;: ')}⟧" if text[:-1].isalpha() else f"⟦{text}⟧"


def closing_brace(text: str, start: int) -> int:
    """Where the brace that opens at `start` closes, or the text's end."""
    depth = 0
    for position in range(start, len(text)):
        if text[position] in "{}":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return position
    return len(text)


def plain_words(text: str) -> str:
    """Text without marks and markup, lower case: what is compared where answers are words."""
    return " ".join(re.sub(r"[⟦⟧{}\\_]", " ", text).replace("'", "").lower().split())
