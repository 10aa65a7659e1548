"""Data sets, generated tasks and prompts."""

from realrl.data.cleaning import check_held_out, training_problems
from realrl.data.datasets import LoadedProblems, load_problems
from realrl.data.held_out import HeldOut, held_out_problems
from realrl.data.prompts import Rendered, chat_messages, plain_text, render_prompt, render_prompts
from realrl.data.stream import PromptStream

__all__ = [
    "HeldOut",
    "LoadedProblems",
    "PromptStream",
    "Rendered",
    "chat_messages",
    "check_held_out",
    "held_out_problems",
    "load_problems",
    "plain_text",
    "render_prompt",
    "render_prompts",
    "training_problems",
]
