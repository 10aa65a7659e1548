"""Problems as the model sees them: the tokenizer's chat template where it has one, a plain template otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from realrl.config import DataSection
from realrl.types import Problem, Prompt


@dataclass(frozen=True, slots=True)
class Rendered:
    """Prompts within the limit, in order, and how many were longer."""

    prompts: list[Prompt]
    too_long: int


def render_prompts(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Rendered:
    """Render and tokenise; prompts over `data.max_prompt_tokens` are counted and dropped."""
    prompts = [render_prompt(problem, tokenizer, data) for problem in problems]
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= data.max_prompt_tokens]
    return Rendered(kept, len(prompts) - len(kept))


def render_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Prompt:
    """System prompt, worked examples as former turns, then the problem between prefix and suffix."""
    turns = [(example.problem, example.response) for example in data.examples]

    def ask(text: str) -> str:
        return f"{data.prompt_prefix}{text}{data.prompt_suffix}"

    if tokenizer.chat_template and data.chat_template == "auto":
        text = _chat(tokenizer, data.system_prompt, [(ask(q), a) for q, a in turns], ask(problem.problem))
        return Prompt(problem, text, tuple(tokenizer.encode(text, add_special_tokens=False)))
    parts = [data.system_prompt] if data.system_prompt else []
    parts += [part for question, answer in turns for part in (ask(question), answer)]
    text = "\n\n".join([*parts, ask(problem.problem)])
    ids = tokenizer.encode(text, add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None else [cast(int, tokenizer.bos_token_id)]
    return Prompt(problem, text, (*start, *ids))


def _chat(tokenizer, system: str, turns: Sequence[tuple[str, str]], question: str) -> str:
    messages = [
        message
        for asked, answered in turns
        for message in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
    ]
    messages.append({"role": "user", "content": question})
    with_system = [{"role": "system", "content": system}, *messages] if system else messages
    try:
        return tokenizer.apply_chat_template(with_system, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        # Some templates (Gemma's) know no system role: its text then opens the first user turn.
        first = {"role": "user", "content": f"{system}\n\n{messages[0]['content']}"}
        return tokenizer.apply_chat_template([first, *messages[1:]], add_generation_prompt=True, tokenize=False)
