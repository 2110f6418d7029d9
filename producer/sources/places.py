"""One file of a source, wherever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from producer.sources.formats import known_format

READ_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """One file of a source: how people call it, and how to open its bytes.

    ``open_seekable`` opens it as the readers of Parquet need it; None where that cannot be done. ``rereadable``: it
    may be opened more than once.
    """

    name: str
    open: Callable[[], BinaryIO]
    open_seekable: Callable[[], BinaryIO] | None = None
    rereadable: bool = True


def is_data(parts: Sequence[str]) -> bool:
    """Whether a file of a folder is read with it; ``parts`` are its path in there.

    Hidden files and those of other programs, such as _SUCCESS, are no data.
    """
    return not any(part.startswith((".", "_")) for part in parts) and known_format(parts[-1]) is not None
