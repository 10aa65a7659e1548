"""Words next to a formula that change its meaning: opposites, negations and descriptions."""

from __future__ import annotations

import re

# In each line, groups of words separated by bars exclude each other; the words of one group mean the same.
_OPPOSITES = """
am | pm
bc bce | ad ce
least minimum min minimal smallest lowest | most maximum max maximal largest greatest highest
more greater larger | less fewer smaller
increasing increase increases increased rising | decreasing decrease decreases decreased falling
positive | negative
even | odd
before | after
above over | below under
inside | outside
up upward upwards | down downward downwards
left | right
clockwise | counterclockwise anticlockwise
north | south | east | west | northeast | northwest | southeast | southwest
convex | concave
convergent converges converge | divergent diverges diverge
profit gain | loss
win wins | lose loses
heads | tails
faster | slower
older | younger
taller longer | shorter
higher | lower
horizontal | vertical
true | false
rational | irrational
monday | tuesday | wednesday | thursday | friday | saturday | sunday
january | february | march | april | may | june | july | august | september | october | november | december
"""
_SIDES: dict[str, list[tuple[int, int]]] = {}
for _line, _choice in enumerate(_OPPOSITES.strip().split("\n")):
    for _side, _synonyms in enumerate(_choice.split("|")):
        for _word in _synonyms.split():
            _SIDES.setdefault(_word, []).append((_line, _side))
_PHRASES = [
    (re.compile(r"\b([ap])\.\s?m\b\.?"), r"\1m"),
    (re.compile(r"\b(?:no|not) (?:more|greater|larger) than\b|\bup to\b"), "at most"),
    (re.compile(r"\b(?:no|not) (?:less|fewer|smaller) than\b"), "at least"),
    (re.compile(r"n't\b"), " not"),
]
# A word that is not a LaTeX command.
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2}")
_NEGATIONS = {"not", "never", "neither", "nor", "cannot", "except", "excluding"}
# Words that say nothing about the value after them.
_FILLERS = """
a all an and answer answers approximately about are as at be by equal equals equivalent exactly final for from get gives have
hence in is it just of on only or result so solution that the then therefore this thus to total value we when where with yes
"""
_FILLER_WORDS = set(_FILLERS.split())


def contradict(a: str, b: str) -> bool:
    """Whether words of two normalised answers exclude each other: "at least" and "at most", or "not" on one side only.

    Other words on one side only are no contradiction: `5` may be the answer to "at least how many".
    """
    if not (_WORD.search(a) or _WORD.search(b)):
        return False
    left, right = _words(a), _words(b)
    sides: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})
    for words, found in ((left, sides[0]), (right, sides[1])):
        for word in words:
            for line, side in _SIDES.get(word, ()):
                found.setdefault(line, set()).add(side)
    if any(not chosen & sides[1].get(line, chosen) for line, chosen in sides[0].items()):
        return True
    # Answers that consist of words alone are compared elsewhere, word by word.
    formulas = all(re.search(r"\d|\\", text) for text in (a, b))
    return formulas and bool(_NEGATIONS & set(left)) != bool(_NEGATIONS & set(right))


def phrases_differ(a: str, b: str) -> bool:
    """Whether two phrases say different things: each has a meaningful word that the other lacks."""
    if not a or not b:
        return False
    left, right = ({word.removesuffix("s") for word in _words(text) if word not in _FILLER_WORDS} for text in (a, b))
    return bool(left - right and right - left)


def _words(text: str) -> list[str]:
    text = re.sub(r"\\[a-zA-Z]+", " ", text).lower()
    for phrase, by in _PHRASES:
        text = phrase.sub(by, text)
    return re.findall(r"[a-z]{2,}", text)
