"""The run folder: its lock, its recipes, and the one writer and reader of what a run leaves behind."""
