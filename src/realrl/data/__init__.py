"""Data sets, generated tasks and prompts."""

from realrl.data.datasets import LoadedProblems, load_problems
from realrl.data.prompts import Rendered, render_prompt, render_prompts
from realrl.data.stream import PromptStream

__all__ = ["LoadedProblems", "PromptStream", "Rendered", "load_problems", "render_prompt", "render_prompts"]
