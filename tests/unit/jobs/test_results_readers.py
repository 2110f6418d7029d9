"""What the usual readers make of a dataset."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from jobs import layout
from jobs.job_file import Column
from jobs.results import (
    ResultRow,
    write_part,
)
from jobs.spec import RowError
from tests.job_work import RESULT_COLUMNS, WHEN, ok_row

NOTHING = pa.table({})


COLUMNS = (Column(source="sku", name="sku"), Column(source="price", name="price", encoding="float64"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two jobs as Hive partitions: an ok row and one with nothing, then an error row."""
    root = tmp_path_factory.mktemp("store")
    own = pa.table({"sku": ["007", "008"], "price": ["1", None]})
    first = write_part([ok_row(0, text="naïve"), ResultRow(1, 0, None, "cancelled")], own, COLUMNS, 0)
    second = write_part([ResultRow(0, 0, "x", "error", RowError.POISON)], NOTHING, COLUMNS, 0)
    for job, content in (("one", first), ("two", second)):
        path = root / layout.results_file(job, 0)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return root / "results"


def check_rows(rows: list[dict[str, Any]]) -> None:
    """The three rows, in order of job and row, as Python values."""
    assert [row["job_id"] for row in rows] == ["one", "one", "two"]
    assert [row["sku"] for row in rows] == ["007", "008", None]
    assert [row["price"] for row in rows] == [1.0, None, None]
    assert [row["text"] for row in rows] == ["naïve", None, None]
    assert [row["status"] for row in rows] == ["ok", "cancelled", "error"]
    assert [row["seed"] for row in rows] == [0, None, None]
    assert rows[0]["mean_logprob"] == -0.5
    assert rows[0]["started_at"].astimezone(UTC) == WHEN
    assert rows[1]["started_at"] is None


def test_pyarrow_reads_the_dataset_with_its_partition(folder: Path) -> None:
    table = ds.dataset(folder, format="parquet", partitioning="hive").to_table().sort_by("job_id")
    assert [(item.name, str(item.type)) for item in table.schema] == [
        *RESULT_COLUMNS, ("sku", "string"), ("price", "double"), ("job_id", "string"),
    ]  # fmt: skip
    check_rows(table.to_pylist())


def test_duckdb_reads_the_dataset_with_its_partition(folder: Path) -> None:
    with duckdb.connect() as connection:
        query = f"FROM read_parquet('{folder}/*/*.parquet', hive_partitioning = true) ORDER BY job_id, row_index"
        relation = connection.sql(query)
        types = dict(zip(relation.columns, map(str, relation.types), strict=True))
        check_rows(relation.to_arrow_table().to_pylist())
    expected = {
        "row_index": "BIGINT", "sample_index": "INTEGER", "text": "VARCHAR", "mean_logprob": "FLOAT", "seed": "BIGINT",
        "attempt": "INTEGER", "started_at": "TIMESTAMP WITH TIME ZONE", "sku": "VARCHAR", "price": "DOUBLE",
        "job_id": "VARCHAR",
    }  # fmt: skip
    assert {name: types[name] for name in expected} == expected


def test_polars_reads_the_dataset_with_its_partition(folder: Path) -> None:
    frame = pl.read_parquet(folder / "*/*.parquet", hive_partitioning=True).sort("job_id", "row_index")
    expected = {
        "row_index": pl.Int64(), "sample_index": pl.Int32(), "error_code": pl.String(), "mean_logprob": pl.Float32(),
        "seed": pl.Int64(), "finished_at": pl.Datetime("us", "UTC"), "sku": pl.String(), "price": pl.Float64(),
        "job_id": pl.String(),
    }  # fmt: skip
    assert {name: frame.schema[name] for name in expected} == expected
    check_rows(frame.to_dicts())


def test_pandas_reads_the_dataset_with_its_partition(folder: Path) -> None:
    frame = pd.read_parquet(folder, dtype_backend="pyarrow").sort_values(["job_id", "row_index"])
    expected = {
        "row_index": pa.int64(), "sample_index": pa.int32(), "mean_logprob": pa.float32(), "seed": pa.int64(),
        "started_at": pa.timestamp("us", "UTC"), "sku": pa.string(), "price": pa.float64(),
    }  # fmt: skip
    assert {name: frame[name].dtype.pyarrow_dtype for name in expected} == expected
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    check_rows(rows)


def test_plain_pandas_keeps_utc(folder: Path) -> None:
    frame = pd.read_parquet(folder / "job_id=one")
    assert str(frame["started_at"].dtype) == "datetime64[us, UTC]"
    assert frame["started_at"][0] == datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)
