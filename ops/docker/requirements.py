"""Print the direct requirements of a pyproject.toml: its dependencies, and those of the extras named.

The images install these with the lock as a constraint, in a layer of its own before the code. The lock
itself would not do: it holds the packages of every extra, and the producer's image must not grow by the
worker's.

    python requirements.py pyproject.toml [EXTRA ...]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def direct_requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """PEP 508 lines, dependencies first. Raises KeyError for an extra that the project does not have."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    return lines


if __name__ == "__main__":
    print("\n".join(direct_requirements(Path(sys.argv[1]), sys.argv[2:])))
