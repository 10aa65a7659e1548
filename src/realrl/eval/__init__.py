"""Evaluation: accuracy on held-out problems with its standard error, and pass@k."""

from realrl.eval.passk import pass_at_k

__all__ = ["pass_at_k"]
