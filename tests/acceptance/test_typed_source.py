"""A Parquet file in, a dataset out: the columns that went in come out as every reader knows them."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.mill import Mill

EARLY = datetime(1969, 12, 31, tzinfo=UTC)
OWN = pa.table(
    {
        "sku": pa.array(["007", None, "é"], pa.large_string()),
        "price": pa.array([Decimal("3.50"), None, Decimal("-0.01")], pa.decimal128(8, 2)),
        "at": pa.array([datetime(2026, 1, 1, tzinfo=UTC), None, EARLY], pa.timestamp("us", "UTC")),
        "nanos": pa.array([1_700_000_000_123_456_789, None, 1], pa.timestamp("ns")),
        "tags": pa.array([["a", None], None, []], pa.list_(pa.string())),
        "size": pa.array([{"w": 1, "h": [2.5]}, None, {"w": None, "h": None}]),
        "kind": pa.array(["x", None, "x"]).dictionary_encode(),
        "nothing": pa.nulls(3, pa.int32()),
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def job(mill: Mill) -> str:
    """Two batches, the second of which is one row."""
    source = str(mill.folder / "own.parquet")
    pq.write_table(OWN.append_column("title", pa.array(["a lamp", "a bag", "a cup"])), source)
    done = mill.call("submit", source, "--template", "Write about {title}", "--model", "tiny", "--max-tokens", "3",
                     "--batch-size", "2", "--drop-columns", "title", "--wait")  # fmt: skip
    return done.ok().out.strip()


def test_arrow_reads_the_columns_as_they_were(mill: Mill, job: str) -> None:
    assert mill.table(job).select(OWN.column_names).equals(OWN)


def test_duckdb_and_polars_read_them_with_their_types(mill: Mill, job: str) -> None:
    files = f"{mill.dataset(job)}/data-*.parquet"
    query = (
        f"SELECT typeof(price), typeof(tags), size.w, price::VARCHAR, epoch_ns(nanos) FROM '{files}' ORDER BY row_index"
    )
    first, *_ = duckdb.sql(query).fetchall()
    assert first == ("DECIMAL(8,2)", "VARCHAR[]", 1, "3.50", 1_700_000_000_123_456_789)
    frame = pl.read_parquet(files).sort("row_index").select(OWN.column_names)
    expected = pl.DataFrame(pl.from_arrow(OWN))
    assert frame.drop("kind").equals(expected.drop("kind"))
    assert frame["kind"].cast(pl.String).to_list() == ["x", None, "x"]


def test_the_dataset_is_the_source_of_another_job(mill: Mill, job: str) -> None:
    folder = str(mill.dataset(job))
    done = mill.call("submit", folder, "--template", "Again: {sku}", "--skip-invalid", "--keep-columns", "price,tags",
                     "--id-column", "", "--model", "tiny", "--max-tokens", "3", "--wait", "--allow-failed")  # fmt: skip
    again = mill.table(done.ok().out.strip())
    assert again.column("status").to_pylist() == ["ok", "error", "ok"]
    assert again.select(["price", "tags"]).equals(OWN.select(["price", "tags"]))
