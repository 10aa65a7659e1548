"""Imports point one way (../shared/design.md): a room imports only the rooms named beside it."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "realrl"
BASE = {"alarms", "types", "errors", "seeding", "memory", "files", "readers", "hub", "lock", "system", "hardware"}
CONFIG = BASE | {"config", "objectives"}
ALLOWED = {
    "alarms": set(),
    "types": set(),
    "errors": set(),
    "seeding": set(),
    "memory": set(),
    "files": set(),
    "readers": {"errors"},
    "hub": set(),
    "lock": {"errors", "system"},
    "system": set(),
    "hardware": {"errors"},
    "objectives": {"types"},
    "config": BASE | {"objectives"},
    "precision": CONFIG,
    "modes": set(),
    "segments": CONFIG,
    "head": BASE | {"modes"},
    "prefix": set(),
    "layouts": BASE | {"head", "prefix"},
    "trial": BASE | {"layouts", "modes"},
    "logprobs": BASE | {"head", "layouts", "modes", "trial"},
    "logging": CONFIG,
    "rewards": CONFIG,
    "data": CONFIG | {"rewards"},
    "models": CONFIG | {"data", "modes"},
    "sampling": CONFIG | {"head", "modes", "prefix", "trial"},
    "eval": CONFIG | {"precision", "logprobs", "rewards", "data", "models", "sampling", "logging"},
    "train": CONFIG
    | {
        "segments",
        "precision",
        "prefix",
        "head",
        "modes",
        "logprobs",
        "rewards",
        "data",
        "models",
        "sampling",
        "logging",
        "eval",
    },
    "sweep": CONFIG | {"precision", "models", "eval", "logging"},
    "analysis": CONFIG | {"segments", "eval", "models", "rewards", "sweep"},
    "integrations": CONFIG | {"modes", "precision", "rewards", "data", "models"},
    "check": CONFIG | {"logprobs", "models", "sampling", "train"},
    "cli": CONFIG | {"logging", "rewards", "data", "train", "eval", "analysis", "integrations", "sweep", "check"},
    "__main__": {"cli"},
}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = ("realrl", *path.relative_to(SOURCE).parts)[: -node.level]
                module = ".".join([*package, module] if module else package)
            # `from realrl import analysis` names its room in the alias.
            yield from [f"realrl.{alias.name}" for alias in node.names] if module == "realrl" else [module]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_one_way(path):
    room = room_of(path)
    for name in imports(path):
        if name.startswith("realrl."):
            assert name.split(".")[1] in ALLOWED[room] | {room}, f"{room} must not import {name}"
        elif room == "objectives":
            assert name.split(".")[0] in {
                "torch",
                "pydantic",
                "jaxtyping",
                "typing",
                "collections",
                "abc",
                "difflib",
                "__future__",
            }


# What some systems lack; `system.py` imports or asks for it where it is used, and knows what to do without.
PLATFORM_MODULES = {"fcntl", "grp", "msvcrt", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "winreg"}
LINUX_FUNCTIONS = {"eventfd", "memfd_create", "pidfd_open", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "splice"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_some_systems_lack_is_used_in_one_place(path):
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | set(imports(path))
    if room_of(path) != "system":
        assert not used & (PLATFORM_MODULES | LINUX_FUNCTIONS)
    at_import = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not at_import & PLATFORM_MODULES


def test_the_grading_workers_stay_free_of_torch():
    for name in (
        "extract",
        "judges",
        "pool",
        "latex",
        "words",
        "units",
        "intervals",
        "expression",
        "structure",
        "names",
        "equivalence",
    ):
        assert not {module.split(".")[0] for module in imports(SOURCE / "rewards" / f"{name}.py")} & {
            "torch",
            "transformers",
        }
