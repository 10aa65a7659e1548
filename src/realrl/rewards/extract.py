"""Find the final answer in a response. Linear in the text's length; nothing here raises on any string."""

from __future__ import annotations

import re

_BOX = re.compile(r"\\(?:boxed|fbox)\{")
_MARKERS = re.compile(r"####|\b(?:final answer|answer)\b\s*(?:is|:)", re.IGNORECASE)
# Longest text that a marker's line may contribute; an answer is short.
_MAX_LINE = 1000


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{…}` (or `\fbox{…}`), nested braces kept; None where there is none."""
    end = len(text)
    for start in reversed([match.end() - 1 for match in _BOX.finditer(text)]):
        depth = 0
        for position in range(start, end):
            if text[position] == "{":
                depth += 1
            elif text[position] == "}":
                depth -= 1
                if depth == 0:
                    return text[start + 1 : position]
        # An unclosed box: its text holds no closing brace to spare for an earlier one, which is read up to here only.
        end = start
    return None


def extract_answer(text: str) -> str | None:
    r"""The final answer: after the last `</think>` if any, the last `\boxed{}`, else what follows the last "answer is",
    "answer:" or "####" on its line; None where none of these stands."""
    visible = text.rpartition("</think>")[2]
    boxed = last_boxed(visible)
    if boxed is not None:
        return boxed.strip() or None
    markers = list(_MARKERS.finditer(visible))
    if not markers:
        return None
    marker = markers[-1]
    line = visible[marker.end() : marker.end() + _MAX_LINE].partition("\n")[0]
    return line.strip(" \t\r*:.") or None
