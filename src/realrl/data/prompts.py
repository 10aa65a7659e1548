"""Turn problems into prompts, with the tokenizer's chat template if it has one, else with plain text."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from realrl.config import DataSection
from realrl.errors import ConfigError
from realrl.types import Problem, Prompt

# Time limit for one prompt; the templates of real models need about a thousandth of this.
_TEMPLATE_S = 10.0
# For each role: what its text is in a recipe, and what to do if the template drops it.
_TEXTS = {
    "system": ("data.system_prompt", "give it as data.prompt_prefix"),
    "user": ("a problem", "correct the template"),
    "assistant": ("the response of a worked example", "write the examples into data.prompt_prefix"),
}


@dataclass(frozen=True, slots=True)
class Rendered:
    """Prompts within the length limit, in order, and the number of longer ones."""

    prompts: list[Prompt]
    too_long: int


def render_prompts(problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Rendered:
    """Render and tokenise prompts; those longer than `data.max_prompt_tokens` are dropped and counted.

    Raises ConfigError if the chat template fails or drops text.
    """
    prompts = [render_prompt(problem, tokenizer, data) for problem in problems]
    if _has_template(tokenizer, data):
        # A short text may occur in the template by chance; these texts do not.
        turns = chat_messages(Problem("", "", ""), data)
        _chat(tokenizer, [turn | {"content": f"text-{number}-of-a-trial"} for number, turn in enumerate(turns)])
    kept = [prompt for prompt in prompts if len(prompt.token_ids) <= data.max_prompt_tokens]
    return Rendered(kept, len(prompts) - len(kept))


def render_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, data: DataSection) -> Prompt:
    """Render a prompt: system prompt, worked examples as earlier turns, then the problem between prefix and suffix."""
    if _has_template(tokenizer, data):
        text = _chat(tokenizer, chat_messages(problem, data))
        return Prompt(problem, text, tuple(tokenizer.encode(text, add_special_tokens=False)))
    text = plain_text(problem, data)
    ids = tokenizer.encode(text, add_special_tokens=False)
    start = [] if tokenizer.bos_token_id is None else [cast(int, tokenizer.bos_token_id)]
    return Prompt(problem, text, (*start, *ids))


def chat_messages(problem: Problem, data: DataSection) -> list[dict[str, str]]:
    """The prompt as a chat with the roles system (if there is a system prompt), user and assistant."""
    messages = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
    for example in data.examples:
        messages.append({"role": "user", "content": _ask(example.problem, data)})
        messages.append({"role": "assistant", "content": example.response})
    return [*messages, {"role": "user", "content": _ask(problem.problem, data)}]


def plain_text(problem: Problem, data: DataSection) -> str:
    """The prompt without a chat template: its parts, separated by empty lines."""
    return "\n\n".join(message["content"] for message in chat_messages(problem, data))


def _has_template(tokenizer: PreTrainedTokenizerBase, data: DataSection) -> bool:
    return bool(tokenizer.chat_template) and data.chat_template == "auto"


def _ask(text: str, data: DataSection) -> str:
    return f"{data.prompt_prefix}{text}{data.prompt_suffix}"


def _chat(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """The prompt from the model's own template, a program by its author that transformers runs in a sandbox.

    Raises ConfigError if it fails, drops text, or takes longer than 10 s. The time limit works only in the main thread.
    """
    try:
        with _deadline(_TEMPLATE_S):
            text = _rendered(tokenizer, messages)
    except Exception as error:  # noqa: BLE001  a template may raise anything
        raise ConfigError(
            f"the tokenizer's chat template cannot be rendered ({type(error).__name__}: {error}); correct it, or set "
            "data.chat_template = 'plain'"
        ) from error
    _check_whole(text, messages)
    return text


def _check_whole(text: str, messages: list[dict[str, str]]) -> None:
    """Raise ConfigError unless the prompt contains the text of all turns, in order; spaces around a text may be missing.

    The system prompt may be anywhere: Mistral's templates move it into the last turn.
    """
    place = 0
    for message in messages:
        role, content = message["role"], message["content"].strip()
        found = text.find(content, 0 if role == "system" else place)
        if found < 0:
            what, remedy = _TEXTS[role]
            raise ConfigError(
                f"the tokenizer's chat template drops or changes {what}: {content[:80]!r} is not in its prompt {text[:300]!r}; "
                f"{remedy}, or set data.chat_template = 'plain'"
            )
        if role != "system":
            place = found + len(content)


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except TemplateError:
        if messages[0]["role"] != "system":
            raise
        # Some templates (Gemma's) have no system role: its text then goes to the start of the first user turn.
        system, first, *rest = messages
        joined = {"role": "user", "content": f"{system['content']}\n\n{first['content']}"}
        return str(tokenizer.apply_chat_template([joined, *rest], add_generation_prompt=True, tokenize=False))
