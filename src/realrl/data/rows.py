"""Turn one row of a data set into a problem, or say why that is impossible."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from realrl.types import Problem

# Half of a surrogate pair: possible in JSON, but an error in every tokenizer.
_HALF = re.compile("[\ud800-\udfff]")
# A chat or a list of answers stored as text; no real problem or answer begins like this.
_CHAT_AS_TEXT = re.compile(r"""\s*\[?\s*\{\s*(['"])(role|content|from|value|messages|conversations)\1\s*:""")
_LIST_AS_TEXT = re.compile(r"""\s*\[\s*['"]""")
# Other names of roles: ShareGPT's, and OpenAI's newer "developer".
_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}


def value_of(record: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field inside it ("column.field"); None if it is missing."""
    value: Any = record
    for part in column.split(".") if column not in record else [column]:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def make_problem(record: Mapping[str, Any], mapping: Mapping[str, str], default_id: str) -> tuple[Problem, bool]:
    """The problem of a row, and whether its chat has a system turn, which is left out. Raises ValueError for a bad row."""
    text, has_system = _question(value_of(record, mapping["problem"]))
    first, *more = _golds(value_of(record, mapping["answer"]))
    accepted = record.get("also_accept") or []
    if not isinstance(accepted, list):
        raise ValueError(f"also_accept is a {type(accepted).__name__}, not a list of answers")
    more += [_further(other) for other in accepted]
    identity = value_of(record, mapping["id"]) if "id" in mapping else None
    return Problem(default_id if identity is None else str(identity), text, first, tuple(more)), has_system


def _question(value: Any) -> tuple[str, bool]:
    """The text of a problem (of a chat: its user turn), and whether the chat has a system turn."""
    if isinstance(value, str) and _CHAT_AS_TEXT.match(value):
        value = _from_json(value, "the problem is a chat")
    if isinstance(value, Mapping) and ("role" in value or "from" in value):
        value = [value]
    has_system = False
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) for turn in value):
        turns = [_turn(turn) for turn in value]
        has_system = any(role == "system" and text.strip() for role, text in turns)
        asked = [text for role, text in turns if role != "system"]
        if len(asked) != 1 or turns[-1][0] != "user":
            raise ValueError(
                f"the chat has the turns {', '.join(role for role, _ in turns)}; it needs exactly one user turn, at the end; "
                "remove the answer, and give earlier turns as data.examples"
            )
        value = asked[0]
    if isinstance(value, bytes):
        value = value.decode()
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"the problem is {'empty' if not value else 'a ' + type(value).__name__}, not text")
    return _whole(value, "the problem"), has_system


def _turn(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Role and text of a turn, with OpenAI's or ShareGPT's names. A turn without a role is a user turn."""
    role = turn.get("role") or turn.get("from") or "user"
    role = _ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"the chat has a turn with the role {role!r}; known: system, user, assistant")
    content = turn.get("content") if turn.get("content") is not None else turn.get("value")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise ValueError(f"the {role} turn contains something other than text; only text can be used")
        content = "".join(part for part in parts if part)
    if not isinstance(content, str):
        raise ValueError(f"the {role} turn has no text")
    return role, content


def _golds(value: Any) -> list[str]:
    """The accepted answers: a single one, or all of a list."""
    if isinstance(value, str) and _LIST_AS_TEXT.match(value):
        value = _from_json(value, "the answer is a list")
    if not isinstance(value, list):
        return [_gold(value)]
    if not value:
        raise ValueError("the answer is an empty list")
    return [_gold(value[0]), *map(_further, value[1:])]


def _further(value: Any) -> str:
    try:
        return _gold(value)
    except ValueError as error:
        raise ValueError(f"another accepted answer cannot be used: {error}") from error


def _gold(value: Any) -> str:
    """An answer as text; raises ValueError if its digits or characters are uncertain."""
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, bool) or not isinstance(value, (str, int, float, Decimal)):
        raise ValueError("the answer is missing" if value is None else f"the answer is a {type(value).__name__}")
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        raise ValueError(f"the answer is {value}, not a number")
    if isinstance(value, Decimal):
        text = f"{value:f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, float):
        if abs(value) > 2**53:
            raise ValueError(f"the answer {value} is a float whose last digits are lost; write it as an integer or as text")
        # 15 digits are exact in a double: 0.1 + 0.2 gives 0.3; no answer would equal 0.30000000000000004.
        return str(int(value)) if value.is_integer() else f"{value:.15g}"
    # In the released GSM8K, a worked solution ends with "#### answer".
    text = str(value).rpartition("####")[2].strip()
    if not text:
        raise ValueError("the answer is empty")
    return _whole(text, "the answer")


def _whole(text: str, name: str) -> str:
    if _HALF.search(text):
        raise ValueError(f"{name} contains half of a surrogate pair, which is not valid text")
    return text


def _from_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} stored as text, but not as valid JSON ({error}); write it as JSON") from error
