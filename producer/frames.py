"""What the Python API takes for rows: dicts, Arrow tables and readers, data frames, and paths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import Any

import pyarrow as pa

from jobs.errors import InputError
from producer.sources import Source, open_source, rows_source, table_source

#: Rows: dicts, an Arrow table or reader, a pandas or Polars frame; or the path of a source.
Rows = Iterable[Mapping[str, Any]] | str | PathLike[str] | Any


def source_of(rows: Any, format: str | None) -> Source:
    """The source that ``rows`` are; ``format`` is for paths. Raises InputError, SourceError."""
    if isinstance(rows, str | PathLike):
        return open_source(fspath(rows), format=format)
    if format is not None:
        raise InputError(f"format {format!r} is for paths: these rows are {type(rows).__name__}")
    if hasattr(rows, "__arrow_c_stream__"):
        return table_source(_without_index(rows))
    if isinstance(rows, Iterable):
        return rows_source(rows)
    raise InputError(f"cannot read rows from {type(rows).__name__}: give dicts, a table, a data frame or a path")


def _without_index(rows: Any) -> Any:
    """``rows``; a pandas frame as a table, without the index where that has no name.

    Raises InputError where a column holds what Arrow has no type for.
    """
    if type(rows).__module__.partition(".")[0] != "pandas":
        return rows
    try:
        table = pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"the frame has a column that Arrow has no type for: {error}") from error
    return table.drop_columns([name for name in table.column_names if name.startswith("__index_level_")])
