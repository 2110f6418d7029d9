"""Parquet and Arrow files, tables and data frames: rows whose columns have types, read batch by batch.

A row's own columns stay in Arrow on their way to the staged files, so that they keep types and values that Python has
none for; only what prompts, ids and parameters need becomes Python.
"""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, Problem, SourceError, first_line
from producer.sources.arrow_types import aligned, check_storable, python_values, staged_types, storable
from producer.sources.base import ArrowBlock, Found, Source, no_rows
from producer.sources.formats import Compression
from producer.sources.lines import DAMAGED
from producer.sources.opening import opened, spool
from producer.sources.places import READ_BLOCK, Place

#: Rows that become Python at once.
_SLICE = 1024

_PANDAS_INDEX = "__index_level_"

#: File name and rows.
Batches = Iterator[tuple[str, pa.RecordBatch]]


class ArrowSource(Source):
    """A source of record batches of one schema. ``batches`` starts reading from the beginning; it is given the names
    of the columns to read."""

    def __init__(
        self, name: str, schema: pa.Schema, batches: Callable[[list[str]], Batches], *, rereadable: bool = True
    ) -> None:
        names = schema.names
        if twice := {column for column in names if names.count(column) > 1}:
            raise InputError(f"{name}: the column {min(twice)!r} occurs twice")
        super().__init__(name, self._rows, rereadable=rereadable, columns=tuple(names))
        self._schema = pa.schema([pa.field(item.name, storable(item.type)) for item in schema])
        self.types = {item.name: item.type for item in self._schema}
        self._batches = batches
        self._needed = self._kept = frozenset(names)

    def choose(self, needed: frozenset[str], kept: frozenset[str]) -> None:
        for column in kept:
            check_storable(self.name, self._schema.field(column))
        self._needed, self._kept = needed, kept

    def look_ahead(self) -> Source:
        """Raises SourceError where the source holds no rows."""
        batches = self._batches(self._schema.names[:1])
        for file, batch in batches:
            if batch.num_rows:
                # What cannot be read again goes on from here.
                self._rest = None if self.rereadable else self._rows(chain([(file, batch)], batches))
                return self
        raise SourceError([no_rows(self.name)])

    def _rows(self, batches: Batches | None = None) -> Iterator[Found]:
        wanted = [name for name in self._schema.names if name in self._needed or name in self._kept]
        line, current = 0, ""
        for file, batch in batches or self._batches(wanted):
            if file != current:
                line, current = 0, file
            for start in range(0, batch.num_rows, _SLICE):
                part = batch.slice(start, _SLICE)
                yield self._block(part, file, line + 1)
                line += part.num_rows

    def _block(self, batch: pa.RecordBatch, file: str, line: int) -> ArrowBlock:
        needed = [name for name in batch.schema.names if name in self._needed]
        columns = {name: python_values(self.name, name, batch.column(name)) for name in needed}
        try:
            own = staged_types(batch.select([name for name in self._schema.names if name in self._kept]), self._schema)
        except pa.ArrowException as error:
            raise SourceError([Problem(file, line, f"from here on values cannot be kept: {_said(error)}")]) from error
        return ArrowBlock(file, range(line, line + batch.num_rows), columns, own)


def table_source(table: Any, name: str = "table") -> Source:
    """A source of a pyarrow Table, RecordBatchReader, or anything with the Arrow stream protocol.

    pandas (2.2 on) and Polars frames have it. The first row is line 1. Raises InputError for anything else, and
    SourceError where there are no rows.
    """
    if isinstance(table, pa.Table):
        # pandas writes the numbers of rows that were filtered or sorted as a column without a name.
        table = table.drop_columns([column for column in table.column_names if column.startswith(_PANDAS_INDEX)])
        return ArrowSource(name, table.schema, lambda columns: _named(name, table.select(columns))).look_ahead()
    if not isinstance(table, pa.RecordBatchReader) and not hasattr(table, "__arrow_c_stream__"):
        raise InputError(f"cannot read rows from {type(table).__name__}: give dicts, an Arrow table or a data frame")
    reader = pa.RecordBatchReader.from_stream(table)
    schema = pa.schema([item for item in reader.schema if not item.name.startswith(_PANDAS_INDEX)])
    return ArrowSource(name, schema, lambda columns: _named(name, reader), rereadable=False).look_ahead()


def _named(name: str, table: pa.Table | pa.RecordBatchReader) -> Batches:
    batches = table.to_batches(max_chunksize=_SLICE) if isinstance(table, pa.Table) else table
    return ((name, batch) for batch in batches)


def file_source(name: str, files: list[tuple[Place, Compression | None]], kind: str) -> Source:
    """A source of Parquet or Arrow files. Files may lack columns of others, and have narrower types.

    Raises InputError where their schemas exclude each other, SourceError for a damaged file.
    """
    files = [(_on_disk(place, compression), None) if not place.rereadable else (place, compression)
             for place, compression in files]  # fmt: skip
    schemas = []
    for place, compression in files:
        with opened(place, compression, seekable=True) as stream, _reading(place.name):
            schemas.append(_READERS[kind](stream, None)[0])
            _check_names(schemas[-1])
    schema = _unified([place for place, _ in files], schemas)

    def batches(columns: list[str]) -> Batches:
        chosen = pa.schema([schema.field(column) for column in columns])
        for place, compression in files:
            with opened(place, compression, seekable=True) as stream, _reading(place.name):
                _, found = _READERS[kind](stream, columns)
                for batch in found:
                    # Offsets that lie outside of their buffers would end the process, not raise.
                    batch.validate(full=True)
                    yield place.name, aligned(batch, chosen)

    return ArrowSource(name, schema, batches).look_ahead()


def _check_names(fields: Iterable[pa.Field[Any]]) -> None:
    """Raises UnicodeDecodeError for a name that is not UTF-8, at any depth: it would fail wherever it is used."""
    for item in fields:
        _ = item.name
        _check_names(item.type.field(place) for place in range(item.type.num_fields))


def _on_disk(place: Place, compression: Compression | None) -> Place:
    """What can be read once only, such as stdin, as a file that can be read again."""
    with opened(place, compression) as stream, spool(stream, place.name) as copy:
        copy.flush()
        kept = os.dup(copy.fileno())

    def again() -> BinaryIO:
        os.lseek(kept, 0, os.SEEK_SET)
        return os.fdopen(os.dup(kept), "rb", buffering=READ_BLOCK)

    weakref.finalize(again, os.close, kept)
    return Place(place.name, again, again)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Says of a file that cannot be read that it is damaged."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, MemoryError, *DAMAGED) as error:
        reason = f"cannot be read, it is damaged, cut, or of another format: {_said(error)}"
        raise SourceError([Problem(name, None, reason)]) from error


def _said(error: BaseException) -> str:
    return first_line(error)[:200]


def _read_parquet(stream: BinaryIO, columns: list[str] | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    # As in jobs/parquet.py: Arrow's own threads and Python's file objects do not go together.
    file = pq.ParquetFile(stream, page_checksum_verification=True, pre_buffer=False, buffer_size=READ_BLOCK)
    return file.schema_arrow, file.iter_batches(batch_size=_SLICE, columns=columns, use_threads=False)


def _read_arrow(stream: BinaryIO, columns: list[str] | None) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """The file format (Feather 2) or the stream format."""
    magic = stream.read(6)
    stream.seek(0)
    if magic.startswith(b"FEA1"):
        raise pa.ArrowInvalid("it has version 1 of the Feather format: write it anew with version 2")
    if magic == b"ARROW1":
        file = pa.ipc.open_file(pa.PythonFile(cast(io.IOBase, stream), mode="r"))
        return file.schema, map(file.get_batch, range(file.num_record_batches))
    reader = pa.ipc.open_stream(pa.PythonFile(cast(io.IOBase, stream), mode="r"))
    return reader.schema, iter(reader)


_READERS = {"parquet": _read_parquet, "arrow": _read_arrow}


def _unified(places: list[Place], schemas: list[pa.Schema]) -> pa.Schema:
    """One schema for all files. Raises InputError naming the first that does not fit the ones before it."""
    unified = schemas[0].remove_metadata()
    for place, schema in zip(places[1:], schemas[1:], strict=True):
        try:
            unified = pa.unify_schemas([unified, schema.remove_metadata()], promote_options="permissive")
        except pa.ArrowException as error:
            raise InputError(
                f"{place.name}: its columns do not fit those of {places[0].name}: {_said(error)}"
            ) from error
    return unified
