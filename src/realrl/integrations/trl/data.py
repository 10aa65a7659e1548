"""A recipe's problems as TRL's data sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

from datasets import Dataset
from jinja2 import TemplateError
from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from realrl.config import DataSection
from realrl.data import chat_messages, held_out_problems, plain_text, render_prompts
from realrl.errors import ConfigError, DataError
from realrl.integrations.problems import problems_to_train
from realrl.models import load_tokenizer
from realrl.types import Problem, Prompt

logger = logging.getLogger(__name__)


def prompt_dataset(
    model: str, *, seed: int = 0, problems: int | None = None, trust_remote_code: bool = False, **data: Any
) -> Dataset:
    """The training problems of a recipe's `[data]` table, whose keys are the arguments. Columns: prompt, answer and id.

    `prompt` is a chat; it is a text if the tokenizer of `model` has no chat template or `chat_template = "plain"`. `answer` is
    the list of accepted answers, as `verifier_reward` reads it. Prompts longer than `max_prompt_tokens` are left out. A
    generated task has no end and needs `problems`, their number.

    Raises ConfigError for an unknown key, DataError if no problem is left.
    """
    section = _section(data)
    found, notes = problems_to_train(section, seed=seed, count=problems)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    return _dataset(section.train, found, tokenizer, section, notes)


def eval_datasets(
    model: str, *, seed: int = 0, problems: int = 128, trust_remote_code: bool = False, **data: Any
) -> dict[str, Dataset]:
    """The held-out sets of `[data].eval` by name, at most `problems` of each, with the columns of `prompt_dataset`."""
    section = _section(data)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    sets = {}
    for name in section.eval:
        found = held_out_problems(section, name, seed=seed, count=problems, strict=section.strict)
        sets[name] = _dataset(name, found.problems, tokenizer, section, found.warnings)
    return sets


def _section(data: dict[str, Any]) -> DataSection:
    try:
        return DataSection(**data)
    except ValidationError as error:
        raise ConfigError(f"prompt_dataset: {error}") from error


def _dataset(
    name: str, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, data: DataSection, notes: Sequence[str]
) -> Dataset:
    rendered = render_prompts(problems, tokenizer, data)
    for note in notes:
        logger.warning(note)
    if not rendered.prompts:
        raise DataError(
            f"{name}: all {len(problems)} prompts are longer than max_prompt_tokens = {data.max_prompt_tokens}; raise it"
        )
    if rendered.too_long:
        logger.warning(
            "%s: %d of %d prompts are longer than max_prompt_tokens = %d and are left out",
            name,
            rendered.too_long,
            len(problems),
            data.max_prompt_tokens,
        )
    if tokenizer.chat_template and data.chat_template == "auto":
        shown = _chats(rendered.prompts, tokenizer, data)
    else:
        shown = _texts(rendered.prompts, tokenizer, data)
    return Dataset.from_dict(
        {
            "prompt": shown,
            "answer": [list(prompt.problem.golds) for prompt in rendered.prompts],
            "id": [prompt.problem.id for prompt in rendered.prompts],
        }
    )


def _chats(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, data: DataSection) -> list[list[dict[str, str]]]:
    chats = [chat_messages(prompt.problem, data) for prompt in prompts]
    try:
        tokenizer.apply_chat_template(chats[0], add_generation_prompt=True, tokenize=False)
    except TemplateError as error:
        raise ConfigError(
            f"the model's chat template refuses these prompts: {error}; if it has no system role, move system_prompt into "
            "prompt_prefix"
        ) from error
    return chats


def _texts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, data: DataSection) -> list[str]:
    """Texts that TRL turns into the tokens of our trainer; in TRL the tokenizer adds its special tokens."""
    first = prompts[0]
    for start in ("", str(tokenizer.bos_token or "")):
        if tuple(cast(Any, tokenizer(start + first.text))["input_ids"]) == first.token_ids:
            return [start + plain_text(prompt.problem, data) for prompt in prompts]
    found = cast(Any, tokenizer(first.text))["input_ids"]
    raise ConfigError(
        f"this tokenizer adds special tokens to a prompt without a chat template: {first.text!r} becomes {found}, but our "
        f"trainer's prompt is {list(first.token_ids)}; give the tokenizer a chat template"
    )
