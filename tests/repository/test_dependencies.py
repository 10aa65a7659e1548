"""Every dependency has its reason in the docs, its hashes in the lock and a licence that is allowed."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"^[A-Za-z0-9._-]+")


def canonical(name):
    """As PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(file):
    return {
        canonical(name): version
        for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\]+)", (ROOT / file).read_text(), re.MULTILINE)
    }


def test_every_declared_dependency_has_a_reason_in_the_docs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "dependencies.md").read_text()
    always, extras = page.split("## Extras")
    for requirement in project["dependencies"]:
        assert re.search(rf"^\| `{re.escape(NAME.match(requirement)[0])}` \| \w", always, re.MULTILINE), requirement
    for extra, requirements in project["optional-dependencies"].items():
        row = next(line for line in extras.splitlines() if re.match(rf"\| .*`{extra}`.* \|.*\|.*\|", line))
        for requirement in requirements:
            name = NAME.match(requirement)[0]
            assert name == "realrl" or f"`{name}`" in row, (extra, requirement)


def test_the_lock_holds_what_the_constraints_pin_with_hashes():
    assert pins("requirements.lock") == pins("constraints.txt")
    entries = re.split(r"^(?=[A-Za-z0-9])", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE)[1:]
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_every_installed_package_has_an_allowed_licence():
    result = subprocess.run([sys.executable, ROOT / ".ci" / "licences.py"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^  torch +2\.\S+ +Apache-2.0", result.stdout, re.MULTILINE)


def test_every_vendored_file_lies_beside_its_licence():
    for file in (ROOT / "src" / "realrl" / "report" / "assets" / "vendor").iterdir():
        assert file.with_name(f"{file.name.partition('.')[0]}.LICENSE").is_file(), file
        assert f"{file.name.partition('.')[0]} " in (ROOT / "docs" / "dependencies.md").read_text()
