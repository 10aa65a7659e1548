"""What a run was made with: versions, hardware, the commit of this code; one entry for each start of the run."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import realrl
from realrl.rundir.paths import RunPaths
from realrl.system.files import write_whole
from realrl.system.hardware import Rates
from realrl.system.platforms import usable_cpus

_PACKAGES = ("torch", "transformers", "vllm", "peft", "bitsandbytes")


def record_environment(folder: Path, ranks: int, rates: Rates) -> None:
    """Append this start, with the measured rates in FLOP/s, to `folder/environment.json`, a list: a resumed run may go on
    elsewhere, or with other versions."""
    path = RunPaths(folder).environment
    try:
        entries = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        entries = []
    write_whole(path, json.dumps([*entries, environment(ranks) | {"rates": asdict(rates)}], indent=1) + "\n")


def environment(ranks: int) -> dict[str, Any]:
    """Time (Unix seconds), versions, commit and hardware of this process; None for what cannot be found out."""
    return {
        "started": time.time(),
        "realrl": realrl.__version__,
        **_commit(Path(realrl.__file__).parent),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpus": usable_cpus(),
        "gpus": _gpus(),
        "ranks": ranks,
    }


def _gpus() -> list[str]:
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return names or ["Apple MPS"] * torch.backends.mps.is_available()


def _commit(folder: Path) -> dict[str, Any]:
    """The commit of `folder` and whether it has changes; None where git does not track it (an installed package)."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # A package installed below somebody else's checkout must not report that checkout's commit.
    if git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "changed": None}
    status = git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"commit": git("rev-parse", "HEAD"), "changed": None if status is None else bool(status)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """As the processor names itself; the architecture where the system does not tell, as Linux on ARM."""
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        names = [subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()]
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, names), platform.machine())
