"""Result files: their schema, the source's own columns, and their damage."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import DamagedFileError
from jobs.job_file import Column
from jobs.results import (
    JSON_TEXT,
    PartCounts,
    ResultRow,
    arrow_type,
    encode_arrow_type,
    part_counts,
    read_part,
    read_row_count,
    result_name,
    result_schema,
    write_part,
)
from jobs.spec import RowError
from tests.job_work import RESULT_COLUMNS, WHEN, flipped, ok_row

NOTHING = pa.table({})


def column(encoding: str, name: str = "c", arrow: pa.DataType | None = None) -> Column:
    return Column(
        source=name, name=name, encoding=encoding,  # type: ignore[arg-type]
        arrow=None if arrow is None else encode_arrow_type(arrow),
    )  # fmt: skip


def in_results(staged: pa.Array[Any] | list[Any], own: Column) -> pa.ChunkedArray[Any]:
    """A staged column, one value a row, as it appears in a part."""
    array = staged if isinstance(staged, pa.Array) else pa.array(staged, pa.string())
    rows = [ok_row(index) for index in range(len(array))]
    metadata = None if isinstance(staged, pa.Array) else JSON_TEXT
    table = pa.table([array], schema=pa.schema([pa.field(own.source, array.type, metadata=metadata)]))
    return read_part(write_part(rows, table, (own,), 0)).column(own.name)


# -- The schema.


def test_the_columns_are_those_that_the_documents_promise() -> None:
    table = read_part(write_part([ok_row(0)], NOTHING, (), 0))
    assert [(item.name, str(item.type)) for item in table.schema] == RESULT_COLUMNS


def test_columns_of_nulls_alone_keep_their_types() -> None:
    empty = write_part([ResultRow(0, 0, None, "cancelled")], NOTHING, (), 0)
    full = write_part([ok_row(0)], NOTHING, (), 0)
    assert read_part(empty).schema == read_part(full).schema
    assert read_part(empty).column("mean_logprob").to_pylist() == [None]


def test_the_sources_columns_follow_ours_in_their_order() -> None:
    columns = (column("int64", "b"), column("json", "a"))
    assert result_schema(columns).names[-3:] == ["finished_at", "b", "a"]


def test_a_row_is_read_as_it_was_written() -> None:
    row = ok_row(7, 1, text='naïve \U0001f600\n\0 "quoted", text')
    (found,) = read_part(write_part([row], NOTHING, (), 7)).to_pylist()
    assert found == {name: getattr(row, name) for name, _ in RESULT_COLUMNS}


def test_rows_are_sorted_by_row_and_sample() -> None:
    rows = [ok_row(5, 1), ok_row(4, 0), ok_row(5, 0), ok_row(4, 1)]
    table = read_part(write_part(rows, NOTHING, (), 4))
    assert list(zip(*(table.column(name).to_pylist() for name in ("row_index", "sample_index")), strict=True)) == [
        (4, 0), (4, 1), (5, 0), (5, 1),
    ]  # fmt: skip


# -- The source's own columns.


def test_csv_strings_stay_as_they_stand() -> None:
    found = in_results(["007", "1e3", "", None, "TRUE", " x "], column("typed"))
    assert found.type == pa.string()
    assert found.to_pylist() == ["007", "1e3", "", None, "TRUE", " x "]


@pytest.mark.parametrize(
    "staged",
    [
        pa.array([1, None], pa.uint8()),
        pa.array([Decimal("1.10"), None], pa.decimal128(10, 2)),
        pa.array([WHEN, None], pa.timestamp("ns", tz="Europe/Berlin")),
        pa.array([[1, 2], None], pa.list_(pa.int16())),
        pa.array([{"a": 1, "b": None}, None], pa.struct([("a", pa.int32()), ("b", pa.string())])),
        pa.array(["x", None]).dictionary_encode(),
        pa.array([b"\x00\xff", None], pa.large_binary()),
        pa.array([1.5, None], pa.float16()),
        pa.array([True, None]),
        pa.nulls(2, pa.date32()),
    ],
    ids=lambda array: str(array.type),
)
def test_typed_columns_keep_their_types(staged: pa.Array[Any]) -> None:
    found = in_results(staged, column("typed", arrow=staged.type))
    assert found.type == staged.type
    assert found.to_pylist() == staged.to_pylist()


@pytest.mark.parametrize(
    ("encoding", "staged", "expected", "data_type"),
    [
        ("int64", pa.array([1, None, -(2**63), 2**63 - 1]), [1, None, -(2**63), 2**63 - 1], pa.int64()),
        ("float64", pa.array([0.1, None, -0.0]), [0.1, None, -0.0], pa.float64()),
        ("float64", pa.array([1, None, 2**53 + 1]), [1.0, None, 2.0**53], pa.float64()),
        ("float64", ["1", None, "0.1", "1e22", "-0.0"], [1.0, None, 0.1, 1e22, -0.0], pa.float64()),
        ("bool", pa.array([True, None, False]), [True, None, False], pa.bool_()),
        ("string", pa.array(["007", None, '\né "x"', ""]), ["007", None, '\né "x"', ""], pa.string()),
        ("json", ["[1,2]", None, '{"a":null}', '"x"', "7"], ["[1,2]", None, '{"a":null}', '"x"', "7"], pa.string()),
        ("json", pa.array(["007", None, 'é "x"']), ['"007"', None, '"é \\"x\\""'], pa.string()),
        ("json", pa.array([7, None]), ["7", None], pa.string()),
        ("json", pa.array([0.5, 1.0]), ["0.5", "1.0"], pa.string()),
        ("json", pa.array([True, None]), ["true", None], pa.string()),
        ("string", pa.nulls(2, pa.string()), [None, None], pa.string()),
        ("int64", pa.nulls(1, pa.string()), [None], pa.int64()),
    ],
)  # fmt: skip
def test_json_columns_get_the_type_that_was_settled(
    encoding: str, staged: pa.Array[Any] | list[str | None], expected: list[Any], data_type: pa.DataType
) -> None:
    found = in_results(staged, column(encoding))
    assert found.type == data_type
    assert found.to_pylist() == expected


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), min_size=1, max_size=20))
@settings(deadline=None, max_examples=50)
def test_every_json_number_comes_back_exactly(values: list[float | None]) -> None:
    staged = [None if value is None else repr(value) for value in values]
    assert in_results(staged, column("float64")).to_pylist() == values


def test_each_sample_repeats_the_values_of_its_row() -> None:
    rows = [ok_row(index, sample) for index in (10, 11) for sample in range(3)]
    table = read_part(write_part(rows, pa.table({"c": ["a", "b"]}), (column("typed"),), 10))
    assert table.column("c").to_pylist() == ["a", "a", "a", "b", "b", "b"]


@pytest.mark.parametrize("own", [column("json"), column("bool"), column("typed", arrow=pa.list_(pa.int8()))])
def test_a_column_that_a_batch_has_not_seen_is_null_of_its_type(own: Column) -> None:
    table = read_part(write_part([ok_row(0), ok_row(1)], NOTHING, (own,), 0))
    assert table.schema.field("c").type == arrow_type(own)
    assert table.column("c").null_count == 2


def test_columns_that_nobody_listed_are_left_out() -> None:
    table = read_part(write_part([ok_row(0)], pa.table({"dropped": ["x"]}), (), 0))
    assert "dropped" not in table.column_names


def test_a_clashing_column_gets_the_prefix_until_its_name_is_free() -> None:
    assert result_name("title", {"text"}) == "title"
    assert result_name("text", {"text"}) == "input_text"
    assert result_name("text", {"text", "input_text"}) == "input_input_text"
    own = Column(source="text", name="input_text", encoding="typed")
    table = read_part(write_part([ok_row(0, text="ours")], pa.table({"text": ["theirs"]}), (own,), 0))
    assert (table.column("text").to_pylist(), table.column("input_text").to_pylist()) == (["ours"], ["theirs"])


# -- Counts.


def test_the_footer_says_what_the_part_holds() -> None:
    rows = [
        ok_row(0, 0), ok_row(0, 1),
        ResultRow(1, 0, None, "error", RowError.OUT_OF_MEMORY, prompt_tokens=9),
        ResultRow(2, 0, None, "error", RowError.OUT_OF_MEMORY), ResultRow(3, 0, None, "error", RowError.POISON),
        ResultRow(4, 0, None, "cancelled"), ResultRow(5, 0, None, "expired"),
    ]  # fmt: skip
    counts = part_counts(write_part(rows, NOTHING, (), 0))
    assert counts == PartCounts(
        completed=2, failed=3, cancelled=1, expired=1, prompt_tokens=3 + 9, completion_tokens=10,
        errors={"out_of_memory": 2, "poison": 1},
    )  # fmt: skip
    assert counts.rows == len(rows)


def test_the_footer_says_what_the_rows_cost() -> None:
    rows = [ok_row(index) for index in range(3)]
    rows[0].computed_prompt_tokens = 40
    rows[1].computed_prompt_tokens, rows[1].shared_prompt_tokens = 7, 33
    rows[2].repeated = True
    content = write_part(rows, NOTHING, (), 0)
    counts = part_counts(content)
    assert (counts.computed_prompt_tokens, counts.shared_prompt_tokens, counts.repeated_rows) == (47, 33, 1)
    assert read_part(content).schema.equals(result_schema(()))


def test_counts_of_another_version_are_read_as_far_as_they_are_known() -> None:
    sink = pa.BufferOutputStream()
    written = b'{"completed": 4, "errors": {}, "counted_some_day": 1}'
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata({b"promptmill.counts": written}), sink)
    assert part_counts(sink.getvalue().to_pybytes()) == PartCounts(completed=4)


def test_a_parquet_file_without_counts_is_no_part() -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": [1]}), sink)
    content = sink.getvalue().to_pybytes()
    assert read_row_count(content) == 1
    with pytest.raises(DamagedFileError):
        part_counts(content)


# -- Damage.


def test_any_flipped_bit_of_a_part_is_found() -> None:
    content = write_part([ok_row(index) for index in range(4)], NOTHING, (), 0)
    undetected = []
    for position in range(0, len(content), 3):
        try:
            read_part(flipped(content, position, position % 8))
            undetected.append(position)
        except DamagedFileError:
            pass
    assert undetected == []


def test_a_flipped_bit_is_found_by_the_page_checksums_that_other_readers_check_too() -> None:
    text = "".join(chr(33 + index * 7 % 90) for index in range(5_000))
    content = write_part([ok_row(0, text=text)], NOTHING, (), 0)
    column_chunk = pq.read_metadata(pa.BufferReader(content)).row_group(0).column(6)
    middle = column_chunk.dictionary_page_offset + column_chunk.total_compressed_size // 2
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(pa.BufferReader(flipped(content, middle)), page_checksum_verification=True).read()


def test_a_cut_part_is_damaged_for_every_reader_of_ours() -> None:
    content = write_part([ok_row(index) for index in range(4)], NOTHING, (), 0)
    for length in range(0, len(content), 10):
        for read in (read_part, part_counts, read_row_count):
            with pytest.raises(DamagedFileError):
                read(content[:length])


@given(st.integers(min_value=0), st.integers(0, 7))
@settings(deadline=None, max_examples=200)
def test_a_flipped_bit_never_ends_a_read_of_the_footer_in_another_error(position: int, bit: int) -> None:
    content = write_part([ok_row(0)], NOTHING, (), 0)
    damaged = flipped(content, position % len(content), bit)
    for read in (part_counts, read_row_count):
        with contextlib.suppress(DamagedFileError):
            read(damaged)
