"""Figures from the paper and from runs."""
