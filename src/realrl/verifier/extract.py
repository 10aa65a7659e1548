"""Find the final answer in a response. The time is linear in the length of the text; nothing here raises on any string."""

from __future__ import annotations

import re
from dataclasses import dataclass

from realrl.verifier.equivalence import readable
from realrl.verifier.latex import closing_brace

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_JOINT = re.compile(
    r"(?:[\s$,;&]|\\[()\[\]]|\\q?quad|\\text\s*\{\s*(?:and|or)\s*\}|and\b|or\b|\b[a-zA-Z](?:_?\{?\w\}?)?\s*=|"
    r"\.?\s*\n\s*(?:[-*•]|\(?\w{1,2}[.)])\s){0,20}"
)
_MARKERS = re.compile(r"####|<answer>|\b(?:final answer|answer)\b\**\s*(?:is|:)", re.IGNORECASE)
_END_OF_TAG = re.compile(r"</answer>", re.IGNORECASE)
# The text between two amounts of money is not a formula: "$5 a day for $18".
_MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?!\d[\d.,]*\s+[a-z]{2})([^$]+)(?<!\\)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL
)
# The end of a chat turn; text after it does not count.
_TURN = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id)\|>|</s>|<｜end▁of▁sentence｜>")
_HOPE = re.compile(r"I hope (?:it|this) is correct\W*$", re.IGNORECASE)
_NUMBER_TEXT = r"[-+]?\d+(?:,\d{3})*(?:[.,]\d+)?(?:/\d+)?(?:\s*\\?%)?"
_NUMBER = re.compile(rf"(?<![\w.,/^-]){_NUMBER_TEXT}(?![\w/^])")
_STATED = re.compile(
    rf"(?:[=:]|\b(?:is|are|was|were|be|by|equals?|gives?|has|have|it's)\b)\s*(?:[a-zA-Z]+ ){{0,2}}[$€£]?\s*"
    rf"({_NUMBER_TEXT})(?![\d/^])"
)
# Bold text or code within a line.
_SET_OFF = re.compile(r"(?<![\w)*`])(\*\*|__|`)(?=\S)([^*`\n]{1,80})(?<=\S)\1(?![\w(*`])")
_AMOUNT = re.compile(rf"\\?[$€£]?\s*({_NUMBER_TEXT})(?: [a-zA-Z]+){{0,3}}")
# A sentence whose only number stands at its end, before what is counted.
_COUNTED = re.compile(rf"[^\d\n]*?(?<![\w.,/^-])\\?[$€£]?({_NUMBER_TEXT})(?:[ -][a-zA-Z]+){{0,3}}")
# Words that show that a sentence does not state a result.
_NO_RESULT = re.compile(
    r"\?|\b(?:not|no|never|can't|cannot|tr(?:y|ied|ying)|attempts?|gave|give up|guess|maybe|perhaps|unsure|steps?|parts?|about|"
    r"at (?:least|most)|than|each|per|every)\b|n't\b",
    re.IGNORECASE,
)
_RESULT = re.compile(r"(?:=|\bis|\bare)\s*([^=\s][^=]{0,80}?)\.?$")
# Only this much of a line is searched for an answer.
_MAX_LINE = 1000


@dataclass(frozen=True, slots=True)
class ExtractionPolicy:
    r"""What counts as a final answer.

    `require_boxed`: only the content of `\boxed{…}`. `require_think_close`: only text after `</think>`; a response without
    that tag has no answer. `bare_answers`: if nothing marks an answer, search the last line for one.
    """

    require_boxed: bool = False
    require_think_close: bool = False
    bare_answers: bool = True


def last_boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{…}` (or `\fbox{…}`), with nested braces; None if there is no box.

    Boxes separated only by "and", "or" or commas form one answer, returned as a comma-separated list.
    """
    boxes = []
    end = len(text)
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end() - 1
        close = closing_brace(text[start:end], 0) + start
        if close == end:
            if boxes:
                break
            # An unclosed box has no spare closing brace for an earlier box, so that box must close before this one.
            end = match.start()
            continue
        if boxes and not _JOINT.fullmatch(text[close + 1 : boxes[-1][0]]):
            break
        boxes.append((match.start(), text[start + 1 : close]))
        end = match.start()
    parts = list(dict.fromkeys(content.strip() for _, content in reversed(boxes)))
    return ", ".join(parts) if boxes else None


def extract_answer(text: str, policy: ExtractionPolicy | None = None) -> str | None:
    r"""The final answer in the text after the last `</think>`, or None. The first of these rules that finds one decides:

    1. the last `\boxed{}`
    2. the text after the last "answer is", "answer:", "####" or `<answer>`
    3. in the last line: bold text, a formula at the end, the only number, or the last number that it states
    """
    policy = policy or ExtractionPolicy()
    if policy.require_think_close and "</think>" not in text:
        return None
    visible = _TURN.split(text.rpartition("</think>")[2].lstrip(), maxsplit=1)[0]
    boxed = last_boxed(visible)
    if boxed is not None:
        return boxed.strip() or None
    if policy.require_boxed:
        return None
    visible = _HOPE.sub("", visible.rstrip()).rstrip()
    marked = _after_marker(visible)
    if marked is None and policy.bare_answers:
        return _bare(visible)
    return marked


def _after_marker(text: str) -> str | None:
    markers = list(_MARKERS.finditer(text))
    if not markers:
        return None
    last = markers[-1]
    tail = _END_OF_TAG.split(text[last.end() : last.end() + _MAX_LINE], maxsplit=1)[0].lstrip(" \t\r\n*:")
    math = _MATH.match(tail)
    if math:
        # A formula may contain line breaks. The text after it on the same line may be a unit or another part of the answer.
        rest = tail[math.end() :].partition("\n")[0]
        return (_group(math) or "") + rest if re.match(r"\s*(?:,|and\b|or\b)\s*\$", rest) else _group(math)
    # The next sentence is not part of the answer.
    line = re.split(r"\.\s+(?=[A-Z])", tail.partition("\n")[0])[0].strip(" \t\r*:.")
    if not _is_formula(line):
        if ending := _ending(line):
            return ending
        numbers = _NUMBER.findall(line)
        if len(numbers) == 1 and line.count(" ") >= 3:
            return numbers[0].strip()
    return line or None


def _group(match: re.Match[str]) -> str | None:
    return next((group.strip() for group in match.groups() if group and group.strip()), None)


def _bare(text: str) -> str | None:
    tail = text.strip()[-_MAX_LINE:]
    paragraph = tail.rpartition("\n\n")[2].strip(" \t\r\n*")
    line = paragraph.rpartition("\n")[2].strip()
    if re.fullmatch(r"\(?[A-Z][A-Za-z]*\)?", paragraph):
        return paragraph if len(paragraph) < 20 else None
    found = _set_off(line) or next((found for found in map(_ending, (line, paragraph)) if found), None)
    return found or _counted(line) or _last_stated(line)


def _set_off(line: str) -> str | None:
    """The last formula or counted number in bold or as code: "So there are **12 ways**."."""
    for match in reversed(list(_SET_OFF.finditer(line))):
        content = match[2].strip(" .:$")
        amount = _AMOUNT.fullmatch(content)
        if (amount or _is_formula(content)) and (match.start() > 0 or match.end() >= len(line.rstrip(" ."))):
            return amount[1] if amount else content
    return None


def _counted(line: str) -> str | None:
    """The only number of the last sentence, if it stands at the end: "So she pays $18.", "It takes 18 minutes.".

    The sentence must be complete; a sentence that was cut off states nothing.
    """
    if not re.search(r"[.!][\s*]*$", line) or "\\boxed" in line:
        return None
    sentence = re.split(r"[.!]\s+", line.strip(" .!*"))[-1]
    match = None if _NO_RESULT.search(sentence) else _COUNTED.fullmatch(sentence)
    return match[1] if match else None


def _last_stated(line: str) -> str | None:
    """The last number or formula that a line states: "there are 12 ways to do so", "it grows by 100%"."""
    formulas = list(_MATH.finditer(line))
    blanked = _MATH.sub(lambda match: " " * len(match[0]), line)
    stated = [(match.start(1), match[1].strip()) for match in _STATED.finditer(blanked)]
    stated += [(match.start(), _group(match) or "") for match in formulas[-1:]]
    return max(stated)[1] or None if stated else None


def _ending(text: str) -> str | None:
    """The formula that the text consists of, or that ends its last sentence."""
    text = text.rstrip(" .")
    if _is_formula(text):
        return text
    formulas = list(_MATH.finditer(text))
    math = formulas[-1] if formulas else None
    if math and re.fullmatch(r"[ .*)]*(?: [a-zA-Z]+){0,4}", text[math.end() :]):
        return _group(math)
    result = _RESULT.search(text)
    return result[1] if result and _is_formula(result[1]) else None


def _is_formula(text: str) -> bool:
    words = re.search(r"(?<![\\a-zA-Z{])(?!arc|sin|cos|tan|log|sqrt|exp|(?:pi|ln|lg|and|or|percent|pct)\b)[a-z]{2,}", text)
    return bool(re.search(r"[\d\\]", text)) and len(text) <= 300 and not words and readable(text)
