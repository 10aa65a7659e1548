"""realrl: reinforcement learning with verifiable rewards as labels (REAL, arXiv 2602.05630)."""

__version__ = "0.1.0"
