"""Rows that are already in Python: dicts, or Arrow tables and what converts to them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from jobs.errors import InputError, Problem
from producer.sources.base import Item, Source, SourceRow


def rows_source(rows: Iterable[Mapping[str, Any]], name: str = "rows") -> Source:
    """A source of dicts of JSON values; the first is line 1. Raises SourceError where there are none."""
    source = Source(name, lambda: _dict_items(rows, name), rereadable=isinstance(rows, Sequence))
    return source.look_ahead()


def table_source(table: Any, name: str = "table") -> Source:
    """A source of a pyarrow Table, RecordBatchReader, or anything with the Arrow stream protocol.

    pandas (2.2 on) and Polars frames have it. Columns keep their Arrow types; the first row is line 1.
    Raises InputError for anything else, and SourceError where there are no rows.
    """
    if isinstance(table, pa.Table):
        schema, rereadable = table.schema, True
        source = Source(name, lambda: _table_items(table.to_batches(1024), name))
    elif isinstance(table, pa.RecordBatchReader) or hasattr(table, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(table)
        schema, rereadable = reader.schema, False
        source = Source(name, lambda: _table_items(reader, name))
    else:
        raise InputError(f"cannot read rows from {type(table).__name__}: give dicts, an Arrow table or a data frame")
    if twice := {column for column in schema.names if schema.names.count(column) > 1}:
        raise InputError(f"{name}: the column {min(twice)!r} occurs twice")
    source.types = {item.name: item.type for item in schema}
    source.columns = tuple(schema.names)
    source.rereadable = rereadable
    return source.look_ahead()


def _dict_items(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Item]:
    for number, row in enumerate(rows, start=1):
        yield _dict_row(row, name, number)


def _dict_row(row: Any, name: str, number: int) -> Item:
    if not isinstance(row, Mapping):
        return Problem(name, number, f"is {type(row).__name__}, not a dict")
    if any(isinstance(value, float) and value - value != 0 for value in row.values()):
        return Problem(name, number, "holds NaN or Infinity: use None or a number")
    try:
        # Through JSON and back: whatever was in it, plain values come out.
        values = orjson.loads(orjson.dumps(dict(row)))
    except orjson.JSONEncodeError as error:
        if "64-bit" not in str(error):
            return Problem(name, number, f"cannot be written as JSON: {error}")
        # An integer that orjson cannot write; its equals in files are kept too.
        values = json.loads(json.dumps(dict(row), default=str))
    return SourceRow(name, number, values)


def _table_items(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[Item]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 1024):
            for values in batch.slice(start, 1024).to_pylist():
                number += 1
                yield SourceRow(name, number, values)
