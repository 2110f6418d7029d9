"""Plain text: a prompt a line, in the column ``prompt``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from jobs.errors import Problem
from producer.sources.base import Item, SourceRow
from producer.sources.lines import TOO_LONG, not_utf8, read_lines

PROMPT_COLUMN = "prompt"


def read_text(stream: BinaryIO, file: str) -> Iterator[Item]:
    """One row for each line that is not blank, without its line end."""
    for number, line in read_lines(stream, file):
        if line is None:
            yield Problem(file, number, TOO_LONG)
        elif b"\0" in line:
            yield Problem(file, number, "holds a NUL byte: the file is damaged or not UTF-8")
        elif not line.isspace():
            yield _row(line, file, number)


def _row(line: bytes, file: str, number: int) -> Item:
    try:
        prompt = line.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        return Problem(file, number, not_utf8(error, file))
    return SourceRow(file, number, {PROMPT_COLUMN: prompt})
