"""Evaluation: pass@k estimators, and held-out accuracy with a standard error."""

from realrl.eval.passk import pass_at_k

__all__ = ["pass_at_k"]
