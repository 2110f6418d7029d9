"""The lines of a file with their numbers: bounded in length, without the marks of other encodings."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from gzip import BadGzipFile
from typing import BinaryIO

from jobs.errors import Problem, SourceError

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError
else:
    from backports.zstd import ZstdError

#: What reading a compressed file raises where it is damaged or cut; some of it is an OSError besides.
DAMAGED = (EOFError, zlib.error, ZstdError, BadGzipFile)

DAMAGED_TEXT = "the compressed file is damaged or cut"

#: Bytes of the longest line that is read: far beyond the context of any model, and small enough to hold.
MAX_LINE = 16 << 20

#: Bytes that are split into lines at once.
_CHUNK = 128 << 10

TOO_LONG = f"the line is longer than {MAX_LINE >> 20} MiB"

_BOM = b"\xef\xbb\xbf"

#: First bytes of what is often given by mistake.
_OTHER_CONTENT = (
    (b"\xff\xfe", "is UTF-16, not UTF-8: convert it, for example with `iconv -f UTF-16 -t UTF-8 {file}`"),
    (b"\xfe\xff", "is UTF-16, not UTF-8: convert it, for example with `iconv -f UTF-16 -t UTF-8 {file}`"),
    (
        b"\x1f\x8b",
        "is compressed with gzip: give it a name that ends in .gz (stdin: --format jsonl.gz), or decompress it",
    ),
    (
        b"\x28\xb5\x2f\xfd",
        "is compressed with zstd: give it a name that ends in .zst (stdin: --format jsonl.zst), or decompress it",
    ),
    (b"BZh", "is compressed with bzip2: decompress it with `bunzip2`"),
    (b"PAR1", "is a Parquet file, not text: give it a name that ends in .parquet, or add --format parquet"),
    (b"ARROW1", "is an Arrow file, not text: give it a name that ends in .arrow, or add --format arrow"),
    (b"SQLite format 3", "is a SQLite database, not text: export it as CSV or Parquet"),
    (b"PK\x03\x04", "is a zip or Excel file, not text: export it as CSV"),
)


def read_lines(stream: BinaryIO, file: str) -> Iterator[tuple[int, bytes | None]]:
    """Yields ``(line number, line)`` with the line's end; None stands for a line longer than MAX_LINE.

    Raises SourceError where the rest of the file cannot be read: another encoding, damaged compression.
    """
    number = 0
    try:
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            if number == 1:
                line = check_start(line, file)
                if not line:
                    continue
            if len(line) > MAX_LINE:
                _skip_line(stream, line)
                yield number, None
            else:
                yield number, line
    except DAMAGED as error:
        raise SourceError([Problem(file, None, DAMAGED_TEXT)]) from error
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise SourceError([Problem(file, None, reason)]) from error


def read_blocks(stream: BinaryIO, file: str) -> Iterator[tuple[int, list[bytes | None], bytes]]:
    """As ``read_lines``, many lines at once: the first one's number, the lines without their end, and that end.

    The last line of the file is a block of its own where it has no end. Raises SourceError as ``read_lines`` does.
    """
    number, begun, length = 1, [b""], 0
    for chunk in _chunks(stream, file):
        lines: list[bytes | None] = chunk.split(b"\n")  # type: ignore[assignment]
        rest: bytes = lines.pop()  # type: ignore[assignment]
        if lines:
            lines[0] = _joined([*begun, lines[0]], length, number, file)  # type: ignore[list-item]
            yield number, [None if line is not None and len(line) > MAX_LINE else line for line in lines], b"\n"
            number += len(lines)
            begun, length = [], 0
        begun.append(rest)
        length += len(rest)
        if length > MAX_LINE:
            # The rest of it is read past; of the first line not before its beginning was looked at.
            _joined(begun, length, number, file)
            begun = [b""]
    if length:
        yield number, [_joined(begun, length, number, file)], b""


def _joined(pieces: list[bytes], length: int, number: int, file: str) -> bytes | None:
    """The line that was read in pieces, ``length`` bytes so far; None where that is too long."""
    line = b"".join(pieces)
    if number == 1:
        line = check_start(line, file)
    return None if length > MAX_LINE else line


def _chunks(stream: BinaryIO, file: str) -> Iterator[bytes]:
    # One read of the system at a time: between two of them Python looks whether there was a Ctrl-C, within ``read`` it
    # does not, and a pipe may be silent for ever after.
    read = getattr(stream, "read1", stream.read)
    try:
        while chunk := read(_CHUNK):
            yield chunk
    except DAMAGED as error:
        raise SourceError([Problem(file, None, DAMAGED_TEXT)]) from error
    except OSError as error:
        raise SourceError([Problem(file, None, f"cannot be read: {error.strerror or error}")]) from error


def not_utf8(error: UnicodeDecodeError, file: str, *, of_line: bool = True) -> str:
    """Says which byte is not UTF-8, and how to convert the file. ``of_line``: what was decoded is a line."""
    where = f" at position {error.start + 1}" if of_line else ""
    return (
        f"byte 0x{error.object[error.start]:02X}{where} is not UTF-8: convert the file, for example with "
        f"`iconv -f WINDOWS-1252 -t UTF-8 {file}`"
    )


def check_start(start: bytes, file: str) -> bytes:
    """The first bytes of a text, without a byte order mark. Raises SourceError for what is no UTF-8 text."""
    for magic, reason in _OTHER_CONTENT:
        if start.startswith(magic):
            raise SourceError([Problem(file, None, reason.format(file=file))])
    if b"\0" in start[:4096]:
        reason = "holds NUL bytes: it is binary, or UTF-16 to be converted with `iconv -f UTF-16LE -t UTF-8`"
        raise SourceError([Problem(file, 1, reason)])
    return start.removeprefix(_BOM)


def _skip_line(stream: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(MAX_LINE)
