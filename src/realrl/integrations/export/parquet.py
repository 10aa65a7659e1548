"""The data of an export to verl: Parquet files with the rows that verl reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from realrl.config import Config
from realrl.data import chat_messages, held_out_problems
from realrl.integrations.problems import problems_to_train
from realrl.types import Problem

logger = logging.getLogger(__name__)


def write_training(config: Config, path: Path) -> None:
    """The training problems; of a generated task as many as the run will see."""
    count = config.train.steps * config.train.prompts_per_step
    problems, notes = problems_to_train(config.data, seed=config.run.seed, count=count)
    _write_rows(config, config.data.train, "train", problems, notes, path)


def write_held_out(config: Config, name: str, path: Path) -> None:
    """At most `eval.problems` problems of the evaluation set `name`."""
    data = config.data
    found = held_out_problems(data, name, seed=config.run.seed, count=config.eval.problems, strict=data.strict)
    _write_rows(config, name, "eval", found.problems, found.warnings, path)


def _write_rows(config: Config, source: str, split: str, problems: Sequence[Problem], notes: Sequence[str], path: Path) -> None:
    """verl filters prompts over the limit itself, because it has the model's tokenizer."""
    for note in notes:
        logger.warning(note)
    rows = [
        {
            "data_source": source,
            "prompt": chat_messages(problem, config.data),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": _ground_truth(problem)},
            "extra_info": {"index": index, "id": problem.id, "split": split},
        }
        for index, problem in enumerate(problems)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def _ground_truth(problem: Problem) -> str:
    """The gold answer; JSON if there are several, or if a single one could be read as JSON (see `accepted_answers`)."""
    if len(problem.golds) == 1 and not problem.answer.lstrip().startswith("["):
        return problem.answer
    return json.dumps(problem.golds, ensure_ascii=False)
