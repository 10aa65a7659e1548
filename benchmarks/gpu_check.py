"""All that wants a GPU, in one command: make gpu-check.

    python benchmarks/gpu_check.py [--budget-s 480] [--only NAME,NAME] [--output runs/gpu_check] [--device cuda] [--tiny]

machine  device, versions, missing packages
tests    tests/gpu: every layout, objective and route, attention by attention, against float64 on the CPU
train    the quick start's recipe from random weights through the command line, twice, then resumed and evaluated
repeat   one computation several times: is it the same bit for bit, and which operation is not
0.5b, 1.5b  random weights of that size: tokens/s of training and sampling, MFU, peak memory, the longest context
trl      one batch's loss and gradient through TRL's trainer and through ours

Each part runs in a process of its own, so that one that fails leaves the others standing, and has its share of the time; what
it has no time for is named. Needs no network and no installed realrl. Writes report.json and report.md into the output folder
and prints the latter. Exit status 1 where a part failed. --device cpu --tiny tries the same code on any machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from gpu_parts.part import ROOT, Part, environment
from gpu_parts.tables import last_line, markdown

# Part → its module, and its share of the time in seconds of the default budget.
PARTS = {
    "machine": ("about", 25),
    "tests": ("device_tests", 130),
    "train": ("train", 110),
    "repeat": ("repeat", 30),
    "0.5b": ("sizes", 75),
    "1.5b": ("sizes", 75),
    "trl": ("beside_trl", 35),
}
# What is imported → what pip calls it. Without these nothing runs; all others are named and done without.
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
    "pyarrow": "pyarrow",
    "jaxtyping": "jaxtyping",
    "tomli_w": "tomli-w",
    "pytest": "pytest",
}
# Seconds that a part may go on after its deadline, to end by itself.
GRACE = 15


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget-s", type=float, default=480, help="seconds for all parts together")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "gpu_check")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU does in a minute or two")
    parser.add_argument("--fail", default="", help=argparse.SUPPRESS)  # a part that raises, for the test of this command
    arguments = parser.parse_args()
    names = [name.strip() for name in arguments.only.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        parser.error(f"no part is called {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu takes hours at real sizes; add --tiny")
    if missing := [pip for name, pip in NEEDED.items() if importlib.util.find_spec(name) is None]:
        print(f"gpu_check: {sys.executable} lacks {len(missing)} packages: pip install {' '.join(missing)}", file=sys.stderr)
        return 1
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    report = check(names, arguments, output)
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    text = markdown(report)
    (output / "report.md").write_text(text)
    print(f"\n{text}\nfiles in {output}: report.json, report.md, a log of each part", flush=True)
    return int(any(part["status"] == "failed" for part in report["parts"].values()))


def check(names: list[str], arguments: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Run the parts one after the other; time that one does not use goes to those after it."""
    started = time.time()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": arguments.device,
        "tiny": arguments.tiny,
        "budget_s": arguments.budget_s,
        "parts": {},
    }
    for index, name in enumerate(names):
        left = started + arguments.budget_s - time.time()
        share = PARTS[name][1] / sum(PARTS[later][1] for later in names[index:])
        part = Part(name, arguments.device, arguments.tiny, output, deadline=time.time() + left * share)
        found = report["parts"][name] = supervised(part, fail=name == arguments.fail)
        text = last_line(found["error"]) if found["status"] == "failed" else found["summary"]
        print(f"{name}: {found['status']} in {found['seconds']:.0f} s. {text}", flush=True)
        report["seconds"] = time.time() - started
        if name == "machine" and found["status"] == "failed":
            # Without a device nothing else can be had.
            break
    return report


def supervised(part: Part, fail: bool) -> dict[str, Any]:
    """Run a part as a process and read what it left, whatever its end."""
    file, log = (part.folder / f"{part.name}.{ending}" for ending in ("json", "log"))
    for old in (file, log):
        old.unlink(missing_ok=True)
    started = time.time()
    process = context(part.device).Process(target=run_part, args=(part, str(log), fail))
    process.start()
    try:
        process.join(max(part.left, 0) + GRACE)
        killed = process.is_alive()
    finally:
        # Its own children, too.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(process.pid or 0), signal.SIGKILL)
        process.join()
    found = {"summary": "", "left_out": [], "results": {}} | (json.loads(file.read_text()) if file.exists() else {})
    if killed:
        found["status"] = "cut"
        found["left_out"].append("everything after what is listed: its time was used up")
    elif "status" not in found:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-20:]) if log.exists() else ""
        found |= {"status": "failed", "error": f"{last}\nthe process ended with status {process.exitcode}; see {log.name}"}
    return found | {"seconds": round(time.time() - started, 1)}


def context(device: str) -> Any:
    """Processes that import everything anew, since a library that has looked for CUDA must not be forked; on a CPU forks."""
    os.environ.update(environment())
    sys.path[:0] = [path for path in os.environ["PYTHONPATH"].split(os.pathsep) if path not in sys.path]
    found = multiprocessing.get_context("spawn" if device == "cuda" else "forkserver")
    if device == "cpu":
        found.set_forkserver_preload(["gpu_parts.sizes"])
    return found


def run_part(part: Part, log: str, fail: bool) -> None:
    """The process of a part; what it raises goes into the part's file."""
    os.setsid()
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    try:
        if fail:
            raise RuntimeError("asked to fail by --fail")
        importlib.import_module(f"gpu_parts.{PARTS[part.name][0]}").run(part)
    except subprocess.TimeoutExpired as error:
        part.left_out.append(f"what follows {' '.join(map(str, error.cmd[2:5]))}, which had no time to end")
    except Exception:  # noqa: BLE001  whatever it is, the other parts go on
        part.save(status="failed", error=traceback.format_exc())
        return
    part.save(status="cut" if part.left_out else "done")


if __name__ == "__main__":
    sys.exit(main())
