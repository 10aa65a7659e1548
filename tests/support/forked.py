"""`realrl` commands as children of a process that has imported everything: a start costs a fork, not seconds of imports."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path

from patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


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


def realrl(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `realrl WORDS` with this environment and `environment`; the streams as text."""
    return run(command, *map(str, words), cwd=cwd, **environment)


def on_ranks(count: int, function: Callable, *arguments: str, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Run `function(*arguments)` on each of `count` ranks, as torchrun starts them; a result for each."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    # The ranks meet in our store.
    world |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(lambda rank: run(function, *arguments, **environment, **rank), ranks))


def run(function: Callable, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `function(*arguments)` in a child with this environment and `environment`; the streams as text."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [str(Path(folder, name)) for name in ("out", "err")]
        child = context().Process(target=_run, args=(function, arguments, str(cwd), dict(os.environ) | environment, streams))
        child.start()
        child.join(PATIENCE_S)
        if child.exitcode is None:
            child.kill()
            raise subprocess.TimeoutExpired(arguments, PATIENCE_S)
        out, err = (Path(stream).read_text(errors="replace") for stream in streams)
        return subprocess.CompletedProcess(arguments, child.exitcode, out, err)


def command(*words: str) -> None:
    """`realrl WORDS` in this process."""
    sys.argv = ["realrl", *words]
    from realrl.cli import main

    main()


def _run(function: Callable, arguments: tuple[str, ...], folder: str, environment: dict[str, str], streams: list[str]) -> None:
    for descriptor, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    import torch

    # Read from the environment when torch is imported, which was before.
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    function(*arguments)
