"""tests/gpu in a process of its own: how many passed, what was skipped and why, the worst errors against float64."""

from __future__ import annotations

import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter

from gpu_parts.part import ROOT, Part, environment


def run(part: Part) -> None:
    """Raises RuntimeError where a test failed, with the first lines of the failures."""
    report = part.folder / "tests.xml"
    report.unlink(missing_ok=True)
    # Without conftest.py, which needs packages that these tests do not.
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-q", "--noconftest", "-p", "no:cacheprovider"]
    # The errors that tests record are in this form of report alone.
    command += [f"--junitxml={report}", "-o", "junit_family=legacy"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(REALRL_DEVICE=part.device))
    try:
        process.wait(max(part.left - 5, 1))
    except subprocess.TimeoutExpired:
        part.left_out.append("the tests after the last one listed in tests.xml")
        # pytest then ends with its report.
        process.send_signal(signal.SIGINT)
        process.wait(10)
    if not report.exists():
        raise RuntimeError(f"pytest ended with {process.returncode} and left no report; is it installed? See tests.log")
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    failures: dict[str, str] = {}
    worst: dict[str, float] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        name = case.get("name", "")
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        kind = "passed" if outcome is None else outcome.tag
        counts[kind] += 1
        if kind == "skipped":
            skipped[outcome.get("message", "")] += 1
        elif outcome is not None:
            failures[name] = outcome.get("message", "")[:500]
        for entry in case.iter("property"):
            key = str(entry.get("name"))
            worst[key] = max(worst.get(key, 0.0), float(entry.get("value", "nan")))
    part.summary = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    part.add("counts", dict(counts))
    part.add("skipped", dict(skipped))
    part.add("worst_relative_error", worst)
    part.add("failures", failures)
    if failures or process.returncode not in (0, -signal.SIGINT, 2):
        shown = "\n".join(f"{name}: {message}" for name, message in list(failures.items())[:10])
        raise RuntimeError(f"{len(failures)} tests of tests/gpu failed (pytest ended with {process.returncode})\n{shown}")
