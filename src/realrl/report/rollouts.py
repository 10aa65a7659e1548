"""Choose the rollouts of a run that fit into the page, and prepare them for it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from realrl.config import RewardSection
from realrl.errors import ConfigError
from realrl.rewards.second_grader import grade_again
from realrl.rundir.runs import RunRecord, read_columns

# Maximum number of steps whose rollouts are read.
_STEPS = 200
# Maximum number of rollouts of one step.
_STEP_ROWS = 64
# Only this many characters at the start and the end of a long text are kept.
_HEAD, _TAIL = 3000, 3000
# Maximum number of coloured tokens of one response.
_TOKENS = 1000
_TEXTS = ("problem_id", "prompt", "response", "extracted", "answer", "verdict", "reason")
_NUMBERS = ("step", "group", "reward", "score", "weight", "tokens", "truncated")
_TOKEN_COLUMNS = ("token_ids", "log_ratio")


def sample_rollouts(run: RunRecord, budget: int) -> dict[str, Any] | None:
    """A sample of rollouts with about `budget` characters of JSON, spread evenly over the steps; None if there are none.

    Every step gives one rollout, then every step a second one, until the budget is used. The order of steps is such that any
    first part of it covers the whole run. Within a step, grader errors come first; the rest is in a fixed random order.
    `tokens` maps token ids to their text, if token data were recorded.
    """
    files = run.rollout_files()
    files = files[:: -(-len(files) // _STEPS) or 1]
    steps = [found for step, path in files if (found := _step_rows(path, step)).rows]
    if not steps:
        return None
    prompts: dict[str, int] = {}
    chosen: list[dict[str, Any]] = []
    left = budget
    for row in _round_robin([step.rows for step in steps]):
        size = len(json.dumps(row, ensure_ascii=False))
        if row["prompt"] in prompts:
            size -= len(row["prompt"])
        if size > left and chosen:
            break
        left -= size
        chosen.append(row | {"prompt": prompts.setdefault(row["prompt"], len(prompts))})
    chosen.sort(key=lambda row: (row["step"], row["group"]))
    ids = {token for row in chosen for token in row.get("token_ids", ())}
    return {
        "total": sum(step.total for step in steps),
        "steps": sorted({row["step"] for row in chosen}),
        "prompts": list(prompts),
        "rows": chosen,
        "tokens": token_texts(run, ids) if ids else {},
    }


def mark_disagreements(rows: Sequence[dict[str, Any]], grader: str) -> None:
    """Grade the rollouts with a second grader against the gold on the page; adds `disagree` and its verdict as `second`.

    Skips shortened responses, because the second grader would see less than the first. Raises DataError for an unknown name.
    """
    whole = [row for row in rows if not row["cut"]]
    responses, golds = [row["response"] for row in whole], [(row["answer"],) for row in whole]
    others = grade_again(grader, responses, golds, [row["verdict"] for row in whole], RewardSection())
    for row, other in zip(whole, others, strict=True):
        row["second"] = f"{grader}: {other.status}"
        row["disagree"] = other.disagrees


def token_texts(run: RunRecord, ids: set[int]) -> dict[int, str]:
    """The text of each token id from the run's tokenizer; empty if there is no tokenizer."""
    tokenizer = _saved_tokenizer(run.folder) or _model_tokenizer(str(run.config.get("model.path", "")))
    if tokenizer is None:
        return {}
    return {token: tokenizer.decode([token], skip_special_tokens=False) for token in sorted(ids) if 0 <= token < 2**31}


@dataclass(frozen=True, slots=True)
class _StepRows:
    """Rows of a step in the order in which they go into the page, and the number of all its rows."""

    rows: list[dict[str, Any]]
    total: int


def _step_rows(path: Path, step: int) -> _StepRows:
    try:
        return _read_rows(path, path.stat().st_mtime_ns, step)
    except OSError:
        return _StepRows([], 0)


@lru_cache(maxsize=256)
def _read_rows(path: Path, modified: int, step: int) -> _StepRows:
    columns = read_columns(path, (*_TEXTS, *_NUMBERS, *_TOKEN_COLUMNS))
    if not columns or not {"prompt", "response"} <= columns.keys():
        return _StepRows([], 0)
    total = len(columns["prompt"])
    order = list(range(total))
    random.Random(step).shuffle(order)
    verdicts = columns.get("verdict", [None] * total)
    order.sort(key=lambda index: verdicts[index] != "grader_error")
    rows = [_row({name: values[index] for name, values in columns.items()}, step) for index in order[:_STEP_ROWS]]
    return _StepRows(rows, total)


def _row(row: dict[str, Any], step: int) -> dict[str, Any]:
    row |= {"step": step, "group": row.get("group") or 0}
    row["cut"] = len(str(row.get("response") or "")) > _HEAD + _TAIL
    row |= {name: _shortened(str(row.get(name) or "")) for name in _TEXTS}
    row |= {name: float(f"{row[name]:.4g}") for name in ("score", "weight") if row.get(name) is not None}
    ids, ratios = (row.pop(name, None) for name in _TOKEN_COLUMNS)
    if ids and ratios and len(ids) == len(ratios):
        row["token_ids"] = list(ids[:_TOKENS])
        row["log_ratio"] = [None if value is None else round(value, 4) for value in ratios[:_TOKENS]]
    return row


def _shortened(text: str) -> str:
    left_out = len(text) - _HEAD - _TAIL
    return text if left_out <= 0 else f"{text[:_HEAD]}\n[… {left_out:,} characters left out …]\n{text[-_TAIL:]}"


def _round_robin(steps: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    order = sorted(range(len(steps)), key=_bit_reversed)
    for place in range(max(map(len, steps))):
        yield from (steps[step][place] for step in order if place < len(steps[step]))


def _bit_reversed(index: int) -> int:
    """A sort key: 0, 1, 2, … sorted by it go through the range in finer and finer steps (van der Corput)."""
    return int(f"{index:016b}"[::-1], 2)


@lru_cache(maxsize=8)
def _saved_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint: the one that the run used, and readable without torch."""
    from tokenizers import Tokenizer

    for path in sorted(folder.glob("checkpoints/*/tokenizer.json")):
        try:
            return Tokenizer.from_file(str(path))
        except Exception:  # noqa: BLE001  the library raises bare Exception for a damaged file
            continue
    return None


@lru_cache(maxsize=8)
def _model_tokenizer(path: str) -> Any:
    from realrl.models import load_tokenizer

    try:
        return load_tokenizer(path)
    except ConfigError:
        return None
