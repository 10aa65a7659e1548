"""Tests import no tests: what several of them use is in tests/support."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))
TEST_MODULES = {path.stem for path in FILES if path.stem.startswith("test_")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_module_is_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(alias.name for alias in node.names)]
        imported = {part for name in names for part in name.split(".")} & TEST_MODULES
        assert not imported, f"move what both use into tests/support: {imported}"
