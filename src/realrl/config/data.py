"""Section `[data]`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from realrl.config.section import PositiveInt, Section
from realrl.system.files import clash, file_name


class Example(Section):
    """One worked example, shown to the model as an earlier turn of the chat."""

    problem: str = Field(description="the problem, as the user's turn")
    response: str = Field(description="the response, as the model's turn")


class KeepRange(Section):
    """Numbers from `min` to `max`, both included; None means no bound."""

    min: float | None = Field(default=None, description="smallest number that is kept")
    max: float | None = Field(default=None, description="largest number that is kept")


Keep = KeepRange | tuple[str | int | float, ...]


class DataSection(Section):
    """Training and held-out problems, and the prompt around them."""

    train: str = Field(description="training problems: a generated task, a file, a folder, a named set or a hub name")
    eval: tuple[str, ...] = Field(
        default=(),
        description="held-out sets that are evaluated in training; empty: no evaluation. Problems that also occur in training "
        "are counted; a set with no other problems is refused",
    )
    columns: dict[str, str] = Field(
        default={}, description="names of the data's columns for `problem`, `answer` and `id`, in training and held-out sets"
    )
    filter: dict[str, Keep] = Field(default={}, description="training rows to keep: column → list of values, or `{ min, max }`")
    deduplicate: bool = Field(
        default=False, description="keep one row of equal training problems, and none if their gold answers differ"
    )
    decontaminate: tuple[str, ...] = Field(default=(), description="sets whose problems are removed from training")
    task: dict[str, Any] = Field(default={}, description="options of a generated task, such as `digits`")
    system_prompt: str = Field(default="", description="first turn of the chat; the place to say how to answer")
    prompt_prefix: str = Field(default="", description="text before each problem")
    prompt_suffix: str = Field(default="", description="text after each problem")
    examples: tuple[Example, ...] = Field(
        default=(), description='worked examples as earlier turns of the chat: `[{ problem = "…", response = "…" }]`'
    )
    chat_template: Literal["auto", "plain"] = Field(
        default="auto", description='"auto": the tokenizer\'s template if it has one; "plain": none'
    )
    max_prompt_tokens: PositiveInt = Field(default=1024, description="longer prompts are left out and counted, in tokens")
    strict: bool = Field(default=False, description="true: a bad row is an error; false: it is left out and counted")

    @field_validator("columns")
    @classmethod
    def _are_columns_of_ours(cls, columns: dict[str, str]) -> dict[str, str]:
        if unknown := columns.keys() - {"problem", "answer", "id"}:
            raise ValueError(f"unknown column {min(unknown)!r}; the columns are problem, answer and id")
        return columns

    @field_validator("eval")
    @classmethod
    def _have_files_of_their_own(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if pair := clash(names):
            raise ValueError(f"{pair[0]!r} and {pair[1]!r} would be written to the same file, {file_name(pair[0])}; rename one")
        return names
