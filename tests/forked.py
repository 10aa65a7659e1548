"""`realrl` commands as children of a process that has imported everything: a start costs a fork, not seconds of imports."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

ROOT = Path(__file__).parents[1]


def context(*folders: Path) -> ForkServerContext | SpawnContext:
    """Processes that fork from one parent; children, and what they start, also find the modules of `folders`.

    On macOS each is a process of its own: the system's libraries, which torch calls, do not outlive a fork there.
    """
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    missing = [str(folder) for folder in (Path(__file__).parent, *folders) if str(folder) not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*missing, *paths]))
    if sys.platform == "darwin":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["forked_preload"])
    return found


def realrl(*words: object, cwd: Path = ROOT, timeout_s: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `realrl WORDS` with this environment and `environment`; the streams as text."""
    arguments = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("out", "err")]
        child = context().Process(target=_run, args=(arguments, str(cwd), dict(os.environ) | environment, *map(str, streams)))
        child.start()
        child.join(timeout_s)
        if child.exitcode is None:
            child.kill()
            raise subprocess.TimeoutExpired(arguments, timeout_s)
        out, err = (stream.read_text(errors="replace") for stream in streams)
        return subprocess.CompletedProcess(arguments, child.exitcode, out, err)


def _run(arguments: list[str], folder: str, environment: dict[str, str], *streams: str) -> None:
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["realrl", *arguments]
    import torch

    from realrl.cli import main

    # Read from the environment when torch is imported, which was before.
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    main()
