"""Training: `train(recipe)` runs a recipe, and `estimate(config)` says what it will take."""

from realrl.training.forecast import estimate
from realrl.training.run import Summary, train

__all__ = ["Summary", "estimate", "train"]
