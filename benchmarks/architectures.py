"""Every architecture of transformers: exact, refused by name, or wrong.

    python benchmarks/architectures.py [--only NAME]... [--jobs 2] [--json FILE]

Each tiny model of `zoo.py` goes through all parts of `realrl.training.check_model`. A part is exact (largest difference in
nats; the gradient's relative error), refused (a RealrlError, with its message), or WRONG, any other exception included. A model
of which no single row can be computed plainly, or whose tokens see later ones, has to be refused. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers import logging as transformers_logging
from zoo import FAMILIES, VOCABULARY, build

from realrl.training.check_model import CHECKS, Subject, findings


def stub_tokenizer() -> PreTrainedTokenizerFast:
    """As many words as the models have tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    core = Tokenizer(models.WordLevel({f"t{index}": index for index in range(VOCABULARY)}, unk_token="t0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    # Its end token is not the model's, so that the model's own has to be found.
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="t0", eos_token="t2")


def examine(name: str) -> dict[str, Any]:
    """All parts of one family, and its verdict."""
    quiet()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model"
        build(FAMILIES[name]).save_pretrained(path)
        stub_tokenizer().save_pretrained(path)
        parts = {part: asdict(found) for part, found in findings(Subject(str(path), Path(folder)), tuple(CHECKS))}
    for part in parts.values():
        part["message"] = part["message"].replace(folder, "FOLDER")
    statuses = [part["status"] for part in parts.values()]
    verdict = "WRONG" if "WRONG" in statuses else "refused" if parts["logprobs"]["status"] == "refused" else "exact"
    return {"name": name, "verdict": verdict, "parts": parts, "seconds": round(time.perf_counter() - start, 1)}


def quiet() -> None:
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def cell(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    return part["status"] if part["status"] != "exact" else "–" if part["error"] is None else f"{part['error']:.0e}"


def row_of(result: dict[str, Any]) -> str:
    said: dict[str, list[str]] = {}
    for name, part in result["parts"].items():
        if part["message"]:
            said.setdefault(part["message"], []).append(name)
    notes = "; ".join(f"{', '.join(names)}: {message}" for message, names in said.items()).replace("|", "\\|")
    cells = " | ".join(cell(result["parts"].get(part)) for part in CHECKS)
    return f"| {result['name']} | {result['verdict']} | {cells} | {result['seconds']} | {notes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this family alone; may be given several times")
    parser.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here, too")
    arguments = parser.parse_args()
    names = arguments.only or list(FAMILIES)
    if unknown := [name for name in names if name not in FAMILIES]:
        sys.exit(f"no family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
    start = time.perf_counter()
    print(f"| family | verdict | {' | '.join(CHECKS)} | s | notes |\n|{' --- |' * (len(CHECKS) + 4)}")
    results = []
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for result in pool.map(examine, names):
            print(row_of(result), flush=True)
            results.append(result)
    counts = {verdict: sum(result["verdict"] == verdict for result in results) for verdict in ("exact", "refused", "WRONG")}
    print(f"\n{len(results)} models: {counts}; {time.perf_counter() - start:.0f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps({"counts": counts, "results": results}, indent=1))


if __name__ == "__main__":
    main()
