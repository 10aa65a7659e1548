"""Actions after an import that has not happened yet; needs no verl."""

import importlib
import sys

from realrl.integrations.verl.late import after_import


def test_actions_run_once_after_the_first_import(tmp_path, monkeypatch):
    (tmp_path / "comes_late.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    finders, seen = list(sys.meta_path), []
    for name in "ab":
        after_import("comes_late", lambda name=name: seen.append((name, sys.modules["comes_late"].value)))
    assert not seen
    module = importlib.import_module("comes_late")
    assert sorted(seen) == [("a", 1), ("b", 1)]
    assert sys.meta_path == finders
    after_import("comes_late", lambda: seen.append("at once"))
    importlib.import_module("comes_late")
    assert seen[2:] == ["at once"] and module.value == 1
    del sys.modules["comes_late"]


def test_a_module_that_is_missing_is_still_missing():
    after_import("never_there", lambda: None)
    assert importlib.util.find_spec("never_there") is None
