"""What every source gives: rows with their line numbers, streamed, and what was wrong with the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from jobs.errors import InputError, Problem, SourceError
from producer.columns import ArrowRow

#: Rows looked at before the first is handed out, to know the columns of a source without a header.
_AHEAD_ROWS = 64
#: Characters after which looking ahead stops, so that it costs little memory however long the rows are.
_AHEAD_CHARS = 1 << 20


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
    read: Callable[[], Iterator[Item]]
    types: Mapping[str, pa.DataType] | None = None
    rereadable: bool = True
    openai: bool = False
    columns: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    #: The first item, which tells the format of a request file; None once the source was opened.
    _ahead: list[Item] = field(default_factory=list)
    _rest: Iterator[Item] | None = None

    @property
    def columns_typed(self) -> bool:
        """Whether the columns have Arrow types of their own."""
        return self.types is not None

    def choose(self, needed: frozenset[str], kept: frozenset[str]) -> None:
        """Say which columns rows need as Python values, and which are carried to the results, before iterating.

        Sources that read whole rows in any case do nothing. Raises InputError for a column that cannot be carried.
        """

    def __iter__(self) -> Iterator[Item]:
        if self._rest is not None:
            items, self._rest = chain(self._ahead, self._rest), None
            self._ahead = []
            return items
        if not self.rereadable:
            raise InputError(f"{self.name} can be read only once")
        return self.read()

    def look_ahead(self) -> Source:
        """Reads the first rows for ``columns``. Raises SourceError where the source holds none."""
        self._rest = self.read()
        try:
            self._fill_ahead(self._rest)
        except SourceError as error:
            if not self._ahead:
                raise
            # Whoever iterates gets the rows before it first, with what is wrong with them.
            self._rest = _raising(error)
        if not self._ahead:
            raise SourceError([no_rows(self.name)])
        rows = (item for item in self._ahead if isinstance(item, SourceRow))
        self.columns = tuple(dict.fromkeys(chain(self.columns, *(row.values for row in rows))))
        return self

    def _fill_ahead(self, items: Iterator[Item]) -> None:
        chars = 0
        for item in islice(items, _AHEAD_ROWS):
            self._ahead.append(item)
            if isinstance(item, SourceRow):
                chars += sum(len(value) for value in item.values.values() if isinstance(value, str))
            if chars > _AHEAD_CHARS:
                return

    def first_row(self) -> SourceRow | None:
        """The first item, if it is a row; None after the first iteration has begun."""
        first = self._ahead[0] if self._ahead else None
        return first if isinstance(first, SourceRow) else None


def no_rows(name: str) -> Problem:
    return Problem(name, None, "has no rows: there is nothing to generate")


def _raising(error: SourceError) -> Iterator[Item]:
    yield from ()
    raise error
