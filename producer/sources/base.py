"""What every source gives: rows with their line numbers, streamed, and what was wrong with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa

from jobs.errors import InputError, Problem, SourceError
from producer.columns import ArrowRow

#: Rows, and characters of strings, of a block at most, where rows come one by one.
_BLOCK_ROWS = 256
_BLOCK_CHARS = 1 << 20
#: Rows and problems that are looked at for the columns of a source without a header, and characters of them.
_AHEAD_ROWS, _AHEAD_CHARS = 64, 1 << 20


@dataclass(slots=True)
class SourceRow:
    """One row as it was read. Not frozen: a frozen one takes three times as long to make."""

    file: str
    #: 1-based; the line on which the row starts, or the row's number in a file that has no lines.
    line: int
    #: All columns; of an Arrow source only those that ``Source.choose`` named.
    values: dict[str, Any]
    #: The row's own columns where they are in Arrow already.
    arrow: ArrowRow | None = None


Item = SourceRow | Problem


@dataclass(slots=True)
class DictBlock:
    """Rows of one file that follow each other, each with its line."""

    file: str
    lines: Sequence[int]
    values: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.values)

    def names(self) -> set[str]:
        """The columns that any of the rows has."""
        return set().union(*self.values)

    def column(self, name: str) -> list[Any]:
        """A column's values, None where a row has none."""
        return [values.get(name) for values in self.values]

    def own(self) -> list[Any]:
        """The rows' own columns, as ``Own``."""
        return self.values

    def rows(self) -> Iterator[SourceRow]:
        for line, values in zip(self.lines, self.values, strict=True):
            yield SourceRow(self.file, line, values)


@dataclass(slots=True)
class ArrowBlock:
    """Rows of one file that follow each other; ``batch`` holds their own columns, ``columns`` what requests need."""

    file: str
    lines: Sequence[int]
    columns: dict[str, list[Any]]
    batch: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.lines)

    def names(self) -> set[str]:
        return set(self.columns)

    def column(self, name: str) -> list[Any]:
        return self.columns.get(name) or [None] * len(self)

    def own(self) -> list[Any]:
        return [ArrowRow(self.batch, place) for place in range(len(self))]

    def rows(self) -> Iterator[SourceRow]:
        values = zip(*self.columns.values(), strict=True) if self.columns else iter([()] * len(self))
        for place, (line, found) in enumerate(zip(self.lines, values, strict=True)):
            row = dict(zip(self.columns, found, strict=True))
            yield SourceRow(self.file, line, row, ArrowRow(self.batch, place))


Block = DictBlock | ArrowBlock
#: What reading gives: rows, most of the time many at once, and problems between them.
Found = Block | Problem


def grouped(items: Iterable[Item]) -> Iterator[Found]:
    """Blocks of what comes one by one. Rows that come before an error are given before it is raised."""
    rows: list[SourceRow] = []
    chars = 0
    try:
        for item in items:
            full = len(rows) == _BLOCK_ROWS or chars > _BLOCK_CHARS
            if rows and (full or isinstance(item, Problem) or item.file != rows[0].file):
                yield _block(rows)
                rows, chars = [], 0
            if isinstance(item, Problem):
                yield item
            else:
                rows.append(item)
                chars += sum(len(value) for value in item.values.values() if isinstance(value, str))
    except SourceError as error:
        if rows:
            yield _block(rows)
        raise error
    if rows:
        yield _block(rows)


def _block(rows: list[SourceRow]) -> DictBlock:
    return DictBlock(rows[0].file, [row.line for row in rows], [row.values for row in rows])


@dataclass(slots=True)
class Source:
    """A stream of rows and problems. Iterating it reads it; nothing is ever held whole.

    Attributes:
        name: what to call it in messages.
        read: starts reading from the beginning.
        types: the Arrow types of the columns, for sources that have them; None for JSON, whose columns get
            theirs when all rows were seen.
        rereadable: whether it can be iterated more than once. stdin cannot.
        openai: its rows are OpenAI batch requests.
        columns: the names in the header, or in the first rows of a source without one.
        notes: what people should know about how it was read.
    """

    name: str
    read: Callable[[], Iterator[Found]]
    types: Mapping[str, pa.DataType] | None = None
    rereadable: bool = True
    openai: bool = False
    columns: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    #: What was read to know the columns, until the source is iterated.
    _ahead: list[Found] = field(default_factory=list)
    _rest: Iterator[Found] | None = None

    @property
    def columns_typed(self) -> bool:
        """Whether the columns have Arrow types of their own."""
        return self.types is not None

    def choose(self, needed: frozenset[str], kept: frozenset[str]) -> None:
        """Say which columns rows need as Python values, and which are carried to the results, before iterating.

        Sources that read whole rows in any case do nothing. Raises InputError for a column that cannot be carried.
        """

    def blocks(self) -> Iterator[Found]:
        """All rows, in order. Raises InputError the second time where the source can be read only once."""
        if self._rest is not None:
            found, self._rest, self._ahead = chain(self._ahead, self._rest), None, []
            return found
        if not self.rereadable:
            raise InputError(f"{self.name} can be read only once")
        return self.read()

    def __iter__(self) -> Iterator[Item]:
        return _items(self.blocks())

    def look_ahead(self) -> Source:
        """Reads the first rows for ``columns``. Raises SourceError where the source holds none."""
        self._rest = self.read()
        try:
            self.columns = tuple(dict.fromkeys(self._first_names(self._rest)))
        except SourceError as error:
            if not self._ahead:
                raise
            # Whoever iterates gets the rows before it first. Anew, for this one holds on to all that was read.
            self._rest = _raising(SourceError(error.problems, error.total))
        if not self._ahead:
            raise SourceError([no_rows(self.name)])
        return self

    def _first_names(self, blocks: Iterator[Found]) -> Iterator[str]:
        """The columns of the first rows, as many of them wherever blocks end: of a pipe nobody knows where."""
        rows = chars = 0
        for found in blocks:
            self._ahead.append(found)
            for values in found.values if isinstance(found, DictBlock) else ({},):
                yield from values
                rows += 1
                chars += sum(len(value) for value in values.values() if isinstance(value, str))
                if rows == _AHEAD_ROWS or chars > _AHEAD_CHARS:
                    return

    def first_row(self) -> SourceRow | None:
        """The first row, unless a problem comes before it; None after the first iteration has begun."""
        first = self._ahead[0] if self._ahead else None
        return next(first.rows()) if isinstance(first, DictBlock) else None


def _raising(error: SourceError) -> Iterator[Found]:
    yield from ()
    raise error


def _items(blocks: Iterator[Found]) -> Iterator[Item]:
    for found in blocks:
        if isinstance(found, Problem):
            yield found
        else:
            yield from found.rows()


def no_rows(name: str) -> Problem:
    return Problem(name, None, "has no rows: there is nothing to generate")
