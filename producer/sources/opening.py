"""The bytes of a place, unpacked, and on the disk where they have to be read out of order."""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO, cast

from jobs.errors import Problem, SourceError
from producer.sources.formats import Compression
from producer.sources.lines import DAMAGED, DAMAGED_TEXT
from producer.sources.places import READ_BLOCK, Place

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdFile
else:
    from backports.zstd import ZstdFile

#: First bytes of compressed files; Zstandard's may also begin with a frame that is to be skipped.
_MAGIC = {
    "gz": ("gzip", re.compile(rb"\x1f\x8b")),
    "zst": ("Zstandard", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")),
}


@contextmanager
def opened(place: Place, compression: Compression | None, *, seekable: bool = False) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked. Where they have to be ``seekable`` and are not, they pass through the disk.

    Raises SourceError where the file cannot be opened, or has to pass through the disk and cannot, and at the end where
    it was written to meanwhile; reading may raise OSError, EOFError and what ``producer.sources.lines.DAMAGED`` names.
    """
    spooled = seekable and (compression is not None or place.open_seekable is None)
    opens = place.open if spooled or not seekable else place.open_seekable or place.open
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(opens())
        except OSError as error:
            raise SourceError([Problem(place.name, None, f"cannot be read: {error.strerror or error}")]) from error
        original, before = stream, _state(stream)
        if compression is not None:
            _check_packed(stream, compression, place.name)
        if compression == "gz":
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=stream))
            stream = cast(BinaryIO, stack.enter_context(io.BufferedReader(unpacked, READ_BLOCK)))
        elif compression == "zst":
            stream = cast(BinaryIO, stack.enter_context(io.BufferedReader(ZstdFile(stream), READ_BLOCK)))
        if spooled:
            stream = stack.enter_context(spool(stream, place.name))
        yield stream
        if _state(original) != before:
            reason = "changed while it was read: take it when nothing writes to it any more, or a copy of it"
            raise SourceError([Problem(place.name, None, reason)])


def _state(stream: BinaryIO) -> tuple[int, int] | None:
    """What shows that a file was written to: its size and time. None of what is no file."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None


def _check_packed(stream: BinaryIO, compression: Compression, name: str) -> None:
    """Raises SourceError for what is not compressed at all. What cannot be looked into is unpacked at once."""
    start = stream.peek(4) if isinstance(stream, io.BufferedReader) else b""
    program, magic = _MAGIC[compression]
    if start and not magic.match(start):
        reason = f"is not compressed with {program}: its name, or --format, should not end in .{compression}"
        raise SourceError([Problem(name, None, reason)])


def spool(stream: BinaryIO, name: str) -> BinaryIO:
    """All of ``stream`` as a file without a name, which can be read from anywhere. Raises SourceError."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - it is the caller's to close
    try:
        while block := _block(stream, name):
            copy.write(block)
        copy.seek(0)
    except OSError as error:
        with suppress(OSError):  # it tries again to write what it could not
            copy.close()
        where = f"{tempfile.gettempdir()} cannot take it: {error.strerror or error}"
        reason = f"has to be unpacked on the disk, and {where}; set TMPDIR to a folder with more room"
        raise SourceError([Problem(name, None, reason)]) from error
    except BaseException:
        copy.close()
        raise
    return cast(BinaryIO, copy)


def _block(stream: BinaryIO, name: str) -> bytes:
    try:
        return stream.read(READ_BLOCK)
    except DAMAGED as error:
        raise SourceError([Problem(name, None, DAMAGED_TEXT)]) from error
    except OSError as error:
        raise SourceError([Problem(name, None, f"cannot be read: {error.strerror or error}")]) from error
