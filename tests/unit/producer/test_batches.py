"""Batches: the staged tables, the types of their columns, and the digest of their rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError
from jobs.prompts import read_batch, write_batch
from jobs.results import ResultRow, arrow_type, read_part, write_part
from jobs.spec import SamplingParams
from producer import columns
from producer.batches import BatchBuilder, StagedBatch
from producer.check import Checking
from producer.columns import OwnColumns, as_json, settle_type
from producer.rows import RowOptions
from producer.sources import Source, open_source, rows_source, table_source


def build(source: Source, batch_size: int = 256, **options: Any) -> tuple[list[StagedBatch], BatchBuilder]:
    builder = BatchBuilder(batch_size, source.types)
    checking = Checking(source, RowOptions(**options), skip_invalid=True)
    return list(builder.batches(checking.blocks())), builder


def digest(*rows: dict[str, Any], batch_size: int = 256, **options: Any) -> str:
    return build(rows_source(rows), batch_size, **options)[1].digest(b"identity")


def test_rows_are_cut_into_batches_and_summed_up() -> None:
    rows = [{"prompt": "x", "n": 2}, {"prompt": "y", "max_tokens": 5}, {"prompt": ""}]
    batches, builder = build(rows_source(rows), 2, sampling=SamplingParams(max_tokens=10, n=3))
    assert [(batch.index, batch.first_row, batch.table.num_rows) for batch in batches] == [(0, 0, 2), (1, 2, 1)]
    totals = builder.totals
    assert (totals.rows, totals.batches, totals.invalid) == (3, 2, 1)
    assert totals.result_rows == 2 + 3 + 1
    assert totals.max_tokens == 2 * 10 + 3 * 5


def test_a_worker_reads_the_rows_as_they_were_checked() -> None:
    sampling = SamplingParams(n=2)
    rows = [{"prompt": "p", "id": "a", "stop": "x", "k": [1]},
            {"messages": [{"role": "user", "content": "m"}], "id": "b"},
            {"prompt": "", "id": "c"}]  # fmt: skip
    (batch,), _ = build(rows_source(rows), sampling=sampling)
    read = read_batch(write_batch(batch.table), sampling)
    first, second, third = read.prompts
    assert (first.row_index, first.custom_id, first.prompt, first.sampling.stop) == (0, "a", "p", ("x",))
    assert second.messages == [{"role": "user", "content": "m"}]
    assert (third.error_code, third.sampling.n, third.prompt) == ("empty_prompt", 1, None)
    assert read.columns.column("k").to_pylist() == ["[1]", None, None]
    assert read.columns.column("id").to_pylist() == ["a", "b", "c"]


def test_a_late_column_is_absent_from_earlier_batches() -> None:
    batches, builder = build(rows_source([{"prompt": "x"}, {"prompt": "x", "late": 1}]), 1)
    assert ["src:late" in batch.table.column_names for batch in batches] == [False, True]
    assert [column.source for column in builder.columns()] == ["prompt", "late"]


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        (["a", None], "string"), ([None], "string"), ([1, -(2**63)], "int64"), ([1, None, 2.5], "float64"),
        ([True, False], "bool"), ([1, 2**63], "json"), ([10**30], "json"), ([1, "a"], "json"), ([True, 1], "json"),
        ([[1]], "list"), ([[], None], "list"), ([["a", None], []], "list"), ([[1], ["a"]], "json"), ([[1], 1], "json"),
        ([[[1]]], "json"), ([[{}]], "json"), ([[10**30]], "json"), ([{"a": 1}, None], "json"),
    ],
)  # fmt: skip
def test_json_columns_settle_on_the_narrowest_type(values: list[Any], encoding: str) -> None:
    _, builder = build(rows_source([{"prompt": "x", "v": value} for value in values]), 1)
    assert {column.source: column.encoding for column in builder.columns()}["v"] == encoding


def test_kinds_settle_whatever_their_order() -> None:
    assert settle_type({"float64", "int64"}) == settle_type({"int64", "float64"}) == "float64"
    assert settle_type(set()) == "string"


def test_csv_columns_stay_strings(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,code\nx,007\n")
    (batch,), builder = build(open_source(str(path)))
    assert batch.table.column("src:code").to_pylist() == ["007"]
    assert [arrow_type(column) for column in builder.columns()] == [pa.string(), pa.string()]


def test_arrow_columns_keep_their_types() -> None:
    table = pa.table({"prompt": ["x"], "at": pa.array([5], pa.timestamp("ms"))})
    (batch,), builder = build(table_source(table))
    assert batch.table.column("src:at").type == pa.timestamp("ms")
    assert arrow_type(builder.columns()[1]) == pa.timestamp("ms")


def test_clashing_columns_get_a_prefix_and_others_keep_their_names() -> None:
    row = {"prompt": "x", "text": 1, "input_text": 2, "job_id": 3, "custom_id": 4}
    _, builder = build(rows_source([row]), id_column="")
    assert {column.source: column.name for column in builder.columns()} == {
        "prompt": "prompt", "text": "input_input_text", "input_text": "input_text", "job_id": "input_job_id",
        "custom_id": "input_custom_id",
    }  # fmt: skip


def test_keys_that_hold_data_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_COLUMNS", 10)
    with pytest.raises(InputError, match="more than 10 different columns"):
        build(rows_source([{"prompt": "x", f"key-{i}": 1} for i in range(10)]), 1)


def test_the_digest_depends_on_the_rows_and_the_identity() -> None:
    row = {"prompt": "x", "id": "a", "k": 1}
    assert digest(row) == digest(row)
    others = [{**row, "prompt": "y"}, {**row, "id": "b"}, {**row, "k": 2}, {**row, "k": "1"}, {**row, "n": 2}]
    assert len({digest(row), digest(row, row | {"id": "b"}), *map(digest, others)}) == 7
    assert build(rows_source([row]))[1].digest(b"other") != digest(row)


def test_a_column_that_has_only_nulls_is_a_part_of_the_work() -> None:
    rows = [{"prompt": "x"}, {"prompt": "y"}]
    nulls = [{**row, "a": None} for row in rows]
    tables = [pa.table({"prompt": ["x", "y"], "a": pa.nulls(2, kind)}) for kind in (pa.int64(), pa.string())]
    numbers, strings = (build(table_source(table))[1].digest(b"identity") for table in tables)
    assert len({digest(*rows), digest(*nulls), numbers}) == 3
    assert digest(*nulls) == digest(*nulls, batch_size=1) == strings


def test_the_digest_does_not_depend_on_batches_or_the_order_of_keys() -> None:
    rows = [{"prompt": "x", "a": 1, "b": 2}, {"b": 3, "prompt": "y"}, {"prompt": "z", "c": 1}]
    turned = [dict(reversed(row.items())) for row in rows]
    assert digest(*rows) == digest(*rows, batch_size=1) == digest(*turned, batch_size=2)


_NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


_VALUES = st.recursive(st.none() | st.booleans() | st.text() | _NUMBERS, st.lists, max_leaves=3)


def widened(value: Any, kind: pa.DataType) -> Any:
    """Integers as floats where the column is one of floats."""
    if isinstance(value, list) and pa.types.is_list(kind):
        return [widened(item, kind.value_type) for item in value]
    return float(value) if pa.types.is_floating(kind) and value is not None else value


@given(st.lists(_VALUES, min_size=1), st.integers(1, 5))
def test_staged_json_has_its_settled_type_in_the_results_wherever_it_was_cut(values: list[Any], size: int) -> None:
    own = OwnColumns()
    batches = [own.stage([{"v": value} for value in values[start : start + size]])[0]
               for start in range(0, len(values), size)]  # fmt: skip
    (column,) = own.settle()
    found = []
    for batch in batches:
        rows = [ResultRow(index, 0, None, "ok") for index in range(len(batch.array))]
        staged = pa.table([batch.array], schema=pa.schema([batch.field.with_name("v")]))
        found += read_part(write_part(rows, staged, (column,), 0)).column("v").to_pylist()
    if column.encoding == "json":
        assert [text if text is None else json.loads(text) for text in found] == values
        assert [text for text in found if text is not None] == [as_json(value) for value in values if value is not None]
    else:
        assert found == [widened(value, arrow_type(column)) for value in values]


@given(st.lists(_VALUES, min_size=1, max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_the_digest_of_any_values_does_not_depend_on_where_they_are_cut(
    values: list[Any], size: int, other: int
) -> None:
    rows = [{"prompt": "x", "v": value} for value in values]
    assert digest(*rows, batch_size=size) == digest(*rows, batch_size=other)


@given(st.lists(_VALUES, min_size=1, max_size=4), st.lists(_VALUES, min_size=1, max_size=4))
def test_other_values_have_another_digest(values: list[Any], others: list[Any]) -> None:
    one, other = (digest(*({"prompt": "x", "v": value} for value in found)) for found in (values, others))
    assert (one == other) == (json.dumps(values) == json.dumps(others))
