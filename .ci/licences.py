"""The licence of every pinned package that is installed here, as its own metadata gives it; one that is not on the list fails.

Run by the environment's Python: `.venv/bin/python .ci/licences.py`.
"""

import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

# Permissive ones, and MPL-2.0, which asks something of changed files only. Names that metadata uses beside SPDX's follow.
ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("CNRI-Python", "ISC", "MIT", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib"),
}
SPELLINGS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    # Which of them metadata does not say; both are allowed.
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}


def stated(package: Distribution) -> list[str]:
    """The licences that a package's metadata names: all of its SPDX expression, else its classifiers', else its own line."""
    metadata = package.metadata
    classifiers = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    line = metadata.get("License-Expression") or ""
    named = [] if line else [name for name in classifiers if name != "OSI Approved"]
    named = named or re.split(r" AND | OR |[()]", line or metadata.get("License") or "")
    return [SPELLINGS.get(name.strip(), name.strip().partition("\n")[0]) for name in named if name.strip()]


def main() -> int:
    """Print the table; 1 where a licence is unknown, or not on the list."""
    pins = re.findall(r"^([A-Za-z0-9._-]+)==", Path(__file__).parents[1].joinpath("constraints.txt").read_text(), re.MULTILINE)
    refused = 0
    for name in pins:
        try:
            package = distribution(name)
        except PackageNotFoundError:
            print(f"  {name:28} not installed here")
            continue
        licences = stated(package)
        bad = not licences or not ALLOWED.issuperset(licences)
        refused += bad
        print(f"{'!' if bad else ' '} {name:28} {package.version:14} {', '.join(licences) or 'no licence named'}")
    print(f"{len(pins)} packages, {refused} with a licence that is not on the list of .ci/licences.py")
    return int(refused > 0)


if __name__ == "__main__":
    sys.exit(main())
