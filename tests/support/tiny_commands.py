"""`realrl` as a command, the tiny recipe, and the records of a run."""

import json

import forked
from forked import ROOT

TINY = str(ROOT / "recipes" / "tiny.toml")


def realrl(*arguments, check=True, **environment):
    words = [word for argument in arguments for word in str(argument).split()]
    result = forked.realrl(*words, **environment)
    if check:
        assert result.returncode == 0, result.stderr
    return result


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
