"""The file of an export: it has its name only once it is whole, and is packed as its extension says."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import pyarrow as pa

#: Extensions and Arrow's names of what they stand for.
PACKINGS: dict[str, Literal["gzip", "zstd"]] = {".gz": "gzip", ".zst": "zstd"}

_BLOCK = 1 << 20


@contextlib.contextmanager
def open_target(path: Path) -> Iterator[BinaryIO]:
    """Opens ``path`` for writing. A file that is there is replaced at the end, at once; a pipe or device is written to.

    Raises OSError.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        with place.open("wb") as file, _packed(file, path) as out:
            yield out
        return
    with whole_file(place) as whole, _packed(whole, path) as out:
        yield out


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the name ``path``, and the place of what has it, when all is written. Raises OSError."""
    temporary = path.with_name(f".promptmill-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb", buffering=_BLOCK) as file:
            yield file
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _packed(file: Any, path: Path) -> Iterator[BinaryIO]:
    codec = PACKINGS.get(path.suffix.lower())
    if codec is None:
        yield file
        return
    with pa.CompressedOutputStream(file, codec) as stream:
        yield cast(BinaryIO, stream)


def beside(path: Path, word: str) -> Path:
    """The file beside ``path`` for what ``word`` says: ``out.jsonl.gz`` -> ``out.errors.jsonl.gz``."""
    packing = path.suffix if path.suffix.lower() in PACKINGS else ""
    inner = Path(path.name.removesuffix(packing))
    return path.with_name(f"{inner.stem}.{word}{inner.suffix}{packing}")
