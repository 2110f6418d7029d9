"""CSV and TSV: a header, then rows of strings. What RFC 4180 does not allow is a problem, not a guess."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from jobs.errors import Problem, SourceError
from producer.sources.base import Item, SourceRow
from producer.sources.lines import MAX_LINE, TOO_LONG, not_utf8, read_lines

_PLAIN_WORDS = {
    "unexpected end of data": "a quoted field is never closed: the file seems cut, or a quote is not doubled",
    "new-line character seen in unquoted field": "holds a carriage return in the middle of a field",
}


class _TextLines:
    """Feeds ``csv.reader``, noting where the row began and what was wrong with its bytes."""

    def __init__(self, lines: Iterable[tuple[int, bytes | None]], file: str) -> None:
        self._lines = iter(lines)
        self._file = file
        self._size = 0
        self.start = 0
        self.reason: str | None = None

    def begin_row(self) -> None:
        self.start, self._size, self.reason = 0, 0, None

    def __iter__(self) -> _TextLines:
        return self

    def __next__(self) -> str:
        number, line = next(self._lines)
        self.start = self.start or number
        self._size += len(line or b"")
        if line is None or self._size > MAX_LINE:
            reason = f"{TOO_LONG}, or a quote that opens here is never closed"
            raise SourceError([Problem(self._file, self.start, reason)])
        if b"\0" in line:
            self.reason = "holds a NUL byte: the file is damaged or not UTF-8"
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            self.reason = not_utf8(error, self._file)
            return line.decode(errors="replace")


class DelimitedReader:
    """Reads files that share one header."""

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter
        self.header: list[str] | None = None

    def __call__(self, stream: BinaryIO, file: str) -> Iterator[Item]:
        """The rows of one file; ``line`` is where a row starts, whatever line ends its quoted fields hold.

        Raises SourceError for a header that cannot be used and a quoted field that is never closed.
        """
        # The standard library's bound is 128 KiB, less than many prompts.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE))
        text = _TextLines(read_lines(stream, file), file)
        rows = csv.reader(text, delimiter=self._delimiter, strict=True)
        header: list[str] | None = None
        while (fields := self._next(rows, text, file)) is not None:
            if isinstance(fields, Problem):
                if header is None:
                    raise SourceError([fields])
                yield fields
            elif not fields:
                continue
            elif header is None:
                header = self._check_header(fields, file, text.start)
            elif len(fields) != len(header):
                reason = f"has {_fields(len(fields))} where the header has {len(header)}"
                yield Problem(file, text.start, reason)
            else:
                yield SourceRow(file, text.start, dict(zip(header, fields, strict=True)))

    @staticmethod
    def _next(rows: Iterator[list[str]], text: _TextLines, file: str) -> list[str] | Problem | None:
        """The next row's fields, none for a blank line; None at the end of the file."""
        text.begin_row()
        try:
            fields = next(rows)
        except StopIteration:
            return None
        except csv.Error as error:
            known = next((said for key, said in _PLAIN_WORDS.items() if str(error).startswith(key)), None)
            problem = Problem(file, text.start, known or f"malformed row: {error}")
            if "unexpected end" in str(error):
                raise SourceError([problem]) from error
            return problem
        return Problem(file, text.start, text.reason) if text.reason else fields

    def _check_header(self, fields: list[str], file: str, line: int) -> list[str]:
        reason = None
        if fields[0].lstrip().startswith(("{", "[")):
            reason = "looks like JSON: give it a name that ends in .jsonl or .json, or add --format jsonl or json"
        elif len(set(fields)) < len(fields) and "" not in fields:
            twice = next(name for name, count in Counter(fields).items() if count > 1)
            reason = f"the header names the column {twice!r} twice"
        elif "" in fields:
            position = fields.index("") + 1
            reason = f"column {position} of the header has no name (pandas: use to_csv(..., index=False))"
        elif self.header is not None and fields != self.header:
            reason = f"the header differs from the first file's: {', '.join(fields)}"
        if reason:
            raise SourceError([Problem(file, line, reason)])
        self.header = self.header or fields
        return fields


def _fields(count: int) -> str:
    return "1 field" if count == 1 else f"{count} fields"
