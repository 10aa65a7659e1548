"""Recipes of tests."""

from realrl.config import parse_config


def config_of(folder, **sections):
    sections.setdefault("model", {})["path"] = str(folder)
    return parse_config({"data": {"train": "column_addition"}, "reward": {"workers": 1}, **sections})
