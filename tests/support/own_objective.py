"""The objective of docs/own_objective.md as a module that a test can name, and its value by its formula."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "own_objective.md"
NAME = "my_losses:Margin"


def write_module(folder: Path) -> None:
    """Save the page's class as FOLDER/my_losses.py."""
    (source,) = re.findall(r"```python\n(# my_losses.py.*?)```", PAGE.read_text(), re.DOTALL)
    (folder / "my_losses.py").write_text(source)


def margin_loss(right: list[torch.Tensor], wrong: list[torch.Tensor], margin: float) -> torch.Tensor | float:
    """The mean of log(1 + e^(margin − (s̄⁺ − s̄⁻))) over the pairs of one group; 0 without a pair."""
    losses = [torch.log1p(torch.exp(margin - (better - worse))) for better in right for worse in wrong]
    return sum(losses) / len(losses) if losses else 0.0
