"""Sources of rows that are already in Python."""

from __future__ import annotations

from datetime import date

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jobs.errors import InputError, Problem, SourceError
from producer.sources import SourceRow, rows_source, table_source


def test_dicts_become_rows_with_running_lines() -> None:
    rows = list(rows_source([{"a": 1}, {"a": date(2026, 11, 23)}]))
    assert rows == [SourceRow("rows", 1, {"a": 1}), SourceRow("rows", 2, {"a": "2026-11-23"})]


def test_generators_are_read_once_and_lists_again() -> None:
    assert not rows_source({"a": i} for i in range(3)).rereadable
    assert rows_source([{"a": 1}]).rereadable


@pytest.mark.parametrize("bad", [{"a": float("nan")}, {"a": object()}, {"a": "\ud800"}, {1: 2}, "text"])
def test_what_is_no_json_is_a_problem(bad: object) -> None:
    _, problem = rows_source([{"a": 1}, bad])  # type: ignore[list-item]
    assert isinstance(problem, Problem)
    assert problem.line == 2


def test_no_rows_are_an_error() -> None:
    with pytest.raises(SourceError, match="no rows"):
        rows_source([])


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": [1, None], "b": ["x", "y"]}),
        pa.table({"a": [1, None], "b": ["x", "y"]}).to_reader(),
        pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": ["x", "y"]}),
        pl.DataFrame({"a": [1, None], "b": ["x", "y"]}),
    ],
    ids=["table", "reader", "pandas", "polars"],
)
def test_tables_keep_their_types(table: object) -> None:
    source = table_source(table)
    assert source.types is not None
    assert source.types["a"] == pa.int64()
    assert [row.values for row in source if isinstance(row, SourceRow)] == [{"a": 1, "b": "x"}, {"a": None, "b": "y"}]


def test_anything_else_is_refused() -> None:
    with pytest.raises(InputError, match="cannot read rows from int"):
        table_source(5)
