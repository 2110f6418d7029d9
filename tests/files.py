"""Files that others write and remove meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """The files in ``folder`` and below, relative to it.

    Not by glob, to which a folder that goes while it is read is an error (Python 3.11), as those of ended jobs do.
    """
    for found, _, names in os.walk(folder):
        for name in names:
            yield Path(found, name).relative_to(folder)
