"""Which rollouts of a run fit into a page, and how they are laid out there."""

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
from realrl.rewards.second_grader import second_grader
from realrl.rundir.runs import RunRecord, read_columns

# Steps whose rollouts are looked into at most.
_STEPS = 200
# Rollouts of one step at most.
_STEP_ROWS = 64
# A longer text keeps its start and its end.
_HEAD, _TAIL = 3000, 3000
# Tokens of one response that can be coloured.
_TOKENS = 1000
_TEXTS = ("problem_id", "prompt", "response", "extracted", "answer", "verdict", "reason")
_NUMBERS = ("step", "group", "reward", "score", "weight", "tokens", "truncated")
_TOKEN_COLUMNS = ("token_ids", "log_ratio")


def sample_rollouts(run: RunRecord, budget: int) -> dict[str, Any] | None:
    """Rollouts in at most about `budget` characters of JSON, evenly over steps; None where the run has none.

    Every step gives one, then every step a second, and so on until the budget is spent; steps in an order whose every start
    is spread over the run. Within a step the order is random, but the same at every call; rollouts that the grader could not
    judge go first. `tokens` maps token ids to their text where token data were recorded.
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
    """Let a second grader judge the rollouts by the gold shown; adds `disagree` and `second`, its own verdict.

    A response that is shown in part is left alone, as the second grader would not see what the first one saw.
    Raises DataError for an unknown name.
    """
    whole = [row for row in rows if not row["cut"]]
    pool = second_grader(grader, RewardSection())
    try:
        judged = pool.grade([(row["response"], (row["answer"],)) for row in whole])
    finally:
        pool.close()
    for row, other in zip(whole, judged, strict=True):
        row["second"] = f"{grader}: {other.status}"
        row["disagree"] = (row["verdict"] == "correct") != (other.status == "correct")


def token_texts(run: RunRecord, ids: set[int]) -> dict[int, str]:
    """The text of each token id by the run's tokenizer; empty where none can be had."""
    tokenizer = _saved_tokenizer(run.folder) or _model_tokenizer(str(run.config.get("model.path", "")))
    if tokenizer is None:
        return {}
    return {token: tokenizer.decode([token], skip_special_tokens=False) for token in sorted(ids) if 0 <= token < 2**31}


@dataclass(frozen=True, slots=True)
class _StepRows:
    """Rows of a step in the order in which they go into a page, and how many the step had."""

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
    """0, 1, 2, 3, … sorted by this go through a range in ever finer strides (van der Corput)."""
    return int(f"{index:016b}"[::-1], 2)


@lru_cache(maxsize=8)
def _saved_tokenizer(folder: Path) -> Any:
    """That of a checkpoint: read without torch, and it is the one that the run used."""
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
