"""JSON Lines: values of every type as JSON holds them, and JSON columns as they were in the source."""

from __future__ import annotations

import io
import json
import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.job_file import Column, JobFile
from producer.export.jsonl import write_jsonl
from producer.export.plain import plain
from tests.job_work import accept_job, memory_store


def written(table: pa.Table, columns: tuple[Column, ...] = ()) -> list[dict[str, Any]]:
    record: JobFile = accept_job(memory_store()).model_copy(update={"columns": columns})
    out = io.BytesIO()
    assert write_jsonl(record, table.to_batches(max_chunksize=2), out) == table.num_rows
    return [json.loads(line) for line in out.getvalue().decode().removesuffix("\n").split("\n") if line]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.none()))
def test_any_text_comes_back(texts: list[str | None]) -> None:
    assert written(pa.table({"text": pa.array(texts, pa.string())})) == [{"text": text} for text in texts]


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('a"\\\n\u2028é'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(JSON_VALUES))
def test_a_column_of_json_values_comes_back_as_these_values(values: list[Any]) -> None:
    texts = [None if value is None else json.dumps(value) for value in values]
    found = written(
        pa.table({"own": pa.array(texts, pa.string())}), (Column(source="own", name="own", encoding="json"),)
    )

    assert [row["own"] for row in found] == values


def test_json_text_with_line_breaks_stays_on_its_line() -> None:
    table = pa.table({"own": ['[\n  1,\r\n  {"a": 123456789012345678901234567890}\n]']})

    assert written(table, (Column(source="own", name="own", encoding="json"),)) == [
        {"own": [1, {"a": 123456789012345678901234567890}]}
    ]


SECOND = 1_700_000_000


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (pa.array([SECOND * 10**9 + 1], pa.timestamp("ns", "America/New_York")), "2023-11-14T22:13:20.000000001Z"),
        (pa.array([SECOND], pa.timestamp("s", "UTC")), "2023-11-14T22:13:20Z"),
        (pa.array([datetime(2026, 1, 2, 3, 4, 5, 600)]), "2026-01-02T03:04:05.000600"),
        (pa.array([date(2026, 1, 2)]), "2026-01-02"),
        (pa.array([time(1, 2, 3)]), "01:02:03.000000"),
        (pa.array([timedelta(days=1, milliseconds=500)]), 86400.5),
        (pa.array([Decimal("12345678901234567890.10")]), "12345678901234567890.10"),
        (pa.array([b"\x00\xff"]), "AP8="),
        (pa.array([b"ab"], pa.binary(2)), "YWI="),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        (pa.array([float("nan")]), None),
        (pa.array([float("inf")]), None),
        (pa.array([1.5], pa.float16()), 1.5),
        (pa.array(["x"]).dictionary_encode(), "x"),
        (pa.array(["x"], pa.string_view()), "x"),
        (pa.array([[("k", b"v")]], pa.map_(pa.string(), pa.binary())), [{"key": "k", "value": "dg=="}]),
        (pa.array([{"a": [{"when": date(2026, 1, 2)}, None]}]), {"a": [{"when": "2026-01-02"}, None]}),
        (pa.array([[b"v", None]], pa.list_view(pa.binary())), ["dg==", None]),
        (pa.array([[b"v", b""]], pa.list_(pa.binary(), 2)), ["dg==", ""]),
        (pa.array([uuid.UUID(int=5).bytes], pa.uuid()), "00000000-0000-0000-0000-000000000005"),
        (pa.nulls(1), None),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_a_value_of_any_type_is_written_as_json_can_hold_it(array: pa.Array[Any], wanted: Any) -> None:
    both = pa.concat_arrays([array, pa.nulls(1, array.type)])

    assert [row["c"] for row in written(pa.table({"c": both}))] == [wanted, None]


NESTED = pa.struct({"n": pa.list_(pa.struct({"b": pa.binary(), "t": pa.large_list(pa.date32())})), "i": pa.int8()})
NESTED_VALUES = st.none() | st.fixed_dictionaries({
    "n": st.none() | st.lists(st.none() | st.fixed_dictionaries({
        "b": st.none() | st.binary(max_size=2), "t": st.none() | st.lists(st.none() | st.dates(), max_size=2)
    }), max_size=3),
    "i": st.none() | st.integers(-128, 127),
})  # fmt: skip


@given(st.lists(NESTED_VALUES), st.integers(0, 3))
def test_nested_values_keep_their_shape_also_in_a_slice(values: list[Any], start: int) -> None:
    found = plain(pa.array(values, NESTED)[start:]).to_pylist()
    shape = lambda row: row and {**row, "n": row["n"] and [item and len(item["t"] or "") for item in row["n"]]}  # noqa: E731

    assert [shape(row) for row in found] == [shape(row) for row in values[start:]]


def test_a_table_without_rows_is_an_empty_file() -> None:
    assert written(pa.table({"a": pa.array([], NESTED)})) == []
