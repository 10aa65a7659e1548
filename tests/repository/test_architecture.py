"""Imports point one way: a room imports only the rooms named beside it."""

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "realrl"
BASE = {"errors", "types", "seeding", "system", "config", "objectives"}
ALLOWED = {
    "errors": set(),
    "types": set(),
    "seeding": set(),
    "system": {"errors"},
    "objectives": set(),
    "testing": {"objectives"},
    "config": {"errors", "system", "objectives"},
    "rundir": BASE,
    "verifier": {"system", "types"},
    "data": BASE | {"verifier"},
    "rewards": BASE | {"verifier", "data"},
    "models": BASE | {"data"},
    "sampling": BASE | {"models"},
    "eval": BASE | {"rundir", "verifier", "data", "rewards", "models", "sampling"},
    "training": BASE | {"rundir", "verifier", "data", "rewards", "models", "sampling", "eval"},
    "figures": BASE | {"rundir"},
    "sweep": BASE | {"rundir", "models", "eval", "figures"},
    "report": BASE | {"rundir", "rewards", "models", "eval", "figures"},
    "integrations": BASE | {"data", "rewards", "models"},
    "cli": BASE | {"rundir", "data", "rewards", "training", "eval", "figures", "sweep", "report", "integrations"},
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
            assert name.split(".")[0] in {"torch", "pydantic", "jaxtyping"} | sys.stdlib_module_names


# What some systems lack; `system/platforms.py` imports or asks for it where it is used, and knows what to do without.
PLATFORM_MODULES = {"fcntl", "grp", "msvcrt", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty", "winreg"}
LINUX_FUNCTIONS = {"eventfd", "memfd_create", "pidfd_open", "posix_fadvise", "posix_fallocate", "sched_getaffinity", "splice"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_some_systems_lack_is_used_in_one_place(path):
    tree = ast.parse(path.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | set(imports(path))
    if path.name != "platforms.py":
        assert not used & (PLATFORM_MODULES | LINUX_FUNCTIONS)
    at_import = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert not at_import & PLATFORM_MODULES


def test_the_grading_workers_stay_free_of_torch():
    for path in (SOURCE / "verifier").glob("*.py"):
        assert not {module.split(".")[0] for module in imports(path)} & {"torch", "transformers"}, path
