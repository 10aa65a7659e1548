"""`realrl grade`: grade a file of responses, and find the rows on which a second grader disagrees."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from realrl.config import RewardSection
from realrl.data.readers import read_file
from realrl.errors import DataError
from realrl.rewards.grader import build_grader
from realrl.rewards.second_grader import check_second_grader, grade_again
from realrl.types import Verdict

# Lower-case labels, as text from any file format; None means a row without a label.
_LABELS = {"true": True, "1": True, "false": False, "0": False, "none": None, "": None}


@dataclass(frozen=True, slots=True)
class GradeReport:
    """Graded rows, counts of their statuses and stages, and the rows on which the second grader disagrees."""

    rows: list[dict[str, Any]]
    statuses: Counter[str]
    stages: Counter[str]
    disagreements: list[dict[str, Any]]

    def errors(self, column: str) -> str:
        """How often the status in `column` contradicts the `label`, for rows with one, as a sentence."""
        labelled = [(row["label"], row[column] == "correct") for row in self.rows if isinstance(row.get("label"), bool)]
        accepted, rejected = (sum(pair == wrong for pair in labelled) for wrong in ((False, True), (True, False)))
        right = sum(label for label, _ in labelled)
        return f"{accepted} of {len(labelled) - right} wrong ones accepted, {rejected} of {right} right ones rejected"


def grade_file(
    path: str,
    output: str | None = None,
    *,
    reward: RewardSection | None = None,
    compare: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> GradeReport:
    """Grade the rows of a file, and write them with their verdicts to `output`.

    A row has `response` and `answer` (text, or a list of accepted answers), and may have `label`: whether it is right.
    Raises DataError, with the line, if a row cannot be graded, before any grading starts.
    """
    reward = reward or RewardSection()
    if compare is not None:
        check_second_grader(compare)
    rows = _read(Path(path))
    responses, golds = [row["response"] for row in rows], [_golds(row) for row in rows]
    with build_grader(reward) as grader:
        verdicts = grader.score(responses, golds, progress)
    graded = [row | _fields(verdict) for row, verdict in zip(rows, verdicts, strict=True)]
    disagreements = []
    if compare is not None:
        others = grade_again(compare, responses, golds, [row["status"] for row in graded], reward, progress)
        for row, other in zip(graded, others, strict=True):
            row[f"status_{compare}"] = other.status
        disagreements = [row for row, other in zip(graded, others, strict=True) if other.disagrees]
    if output is not None:
        lines = (json.dumps(row, ensure_ascii=True, default=str) + "\n" for row in graded)
        Path(output).write_text("".join(lines), encoding="utf-8")
    return GradeReport(graded, Counter(row["status"] for row in graded), Counter(row["stage"] for row in graded), disagreements)


def _fields(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"reward": verdict.reward}


def _golds(row: dict[str, Any]) -> Sequence[str]:
    return (row["answer"],) if isinstance(row["answer"], str) else tuple(row["answer"])


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise DataError(f"no file at {path}; realrl grade needs a file of rows with the columns response and answer")
    rows = []
    for place, row in read_file(path):
        if isinstance(row, str):
            raise DataError(f"{path}, {place}: {row}")
        if not isinstance(row, dict) or not isinstance(row.get("response"), str) or not _is_gold(row.get("answer")):
            raise DataError(
                f"{path}, {place}: a row needs response (text) and answer (text, or a list of accepted answers), "
                f"got {str(row)[:80]}"
            )
        if "label" in row:
            label = str(row["label"]).lower()
            if label not in _LABELS:
                raise DataError(f"{path}, {place}: label is {row['label']!r}; write true if the response is right, else false")
            row["label"] = _LABELS[label]
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no rows; realrl grade needs rows with the columns response and answer")
    return rows


def _is_gold(answer: Any) -> bool:
    if isinstance(answer, str):
        return bool(answer.strip())
    return isinstance(answer, list) and bool(answer) and all(isinstance(item, str) and item.strip() for item in answer)
