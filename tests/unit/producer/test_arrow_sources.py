"""Parquet and Arrow files, tables and frames: their columns are in the results as they were."""

from __future__ import annotations

import contextlib
import datetime as dt
import decimal
import gzip
import io
import subprocess
import sys
import uuid
from itertools import chain
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError, SourceError
from jobs.prompts import read_batch, write_batch
from jobs.results import ResultRow, read_part, write_part
from jobs.spec import SamplingParams
from producer.batches import BatchBuilder
from producer.check import Checking
from producer.rows import RowOptions
from producer.sources import Source, SourceRow, open_source, table_source
from producer.template import Template

IDS = [uuid.UUID(int=number).bytes for number in range(3)]


def through(source: Source, size: int = 2, **options: Any) -> pa.Table:
    """The source's own columns as they come out of a job's parts."""
    builder = BatchBuilder(size, source.types)
    checking = Checking(source, RowOptions(**options))
    batches = list(builder.batches(checking.blocks()))
    checking.report.raise_if_bad()
    parts = []
    for batch in batches:
        staged = read_batch(write_batch(batch.table), SamplingParams())
        rows = [ResultRow(prompt.row_index, 0, None, "ok") for prompt in staged.prompts]
        parts.append(read_part(write_part(rows, staged.columns, builder.columns(), batch.first_row)))
    return pa.concat_tables(parts).select([column.name for column in builder.columns()])


def prompts(source: Source, **options: Any) -> list[str | None]:
    return [row.prompt for row in chain.from_iterable(Checking(source, RowOptions(**options)).blocks())]


KEPT = {
    "int8": pa.array([1, None, -3], pa.int8()),
    "uint64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "float16": pa.array([1.5, None, 2], pa.float16()),
    "decimal": pa.array([decimal.Decimal("1.20"), None, decimal.Decimal("-9.99")], pa.decimal128(10, 2)),
    "wide decimal": pa.array([decimal.Decimal(10**45), None, None], pa.decimal256(50, 2)),
    "date": pa.array([dt.date(2020, 2, 29), None, dt.date(1, 1, 1)]),
    "time": pa.array([1, None, 86_399_999_999_999], pa.time64("ns")),
    "nanoseconds": pa.array([1_700_000_000_123_456_789, None, 1], pa.timestamp("ns")),
    "time zone": pa.array([1, None, 2], pa.timestamp("us", "Europe/Berlin")),
    "duration": pa.array([1, None, -3], pa.duration("ns")),
    "binary": pa.array([b"\xff\x00", None, b""]),
    "fixed binary": pa.array([b"abcd", None, b"\0\0\0\0"], pa.binary(4)),
    "large string": pa.array(["é", None, ""], pa.large_string()),
    "list": pa.array([[1, None], None, []]),
    "large list": pa.array([["a"], None, []], pa.large_list(pa.string())),
    "fixed list": pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)),
    "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
    "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int64())),
    "list of times": pa.array([[1_700_000_000_123_456_789], None, [None]], pa.list_(pa.timestamp("ns"))),
    "dictionary": pa.array(["a", None, "a"]).dictionary_encode(),
    "null": pa.nulls(3),
    "uuid": pa.array([IDS[0], None, IDS[2]], pa.uuid()),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_column_keeps_its_type_and_its_values(tmp_path: Path, name: str) -> None:
    table = pa.table({"prompt": ["p", "q", "r"], "own": KEPT[name]})
    path = str(tmp_path / "a.parquet")
    pq.write_table(table, path)
    for source in (table_source(table), open_source(path)):
        found = through(source)
        assert found.schema.equals(table.schema)
        assert found.column("own").combine_chunks().equals(table.column("own").combine_chunks())


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array(["a", None, "x" * 30], pa.string_view()), pa.string()),
        (pa.array([["a"], None, []], pa.list_(pa.string_view())), pa.list_(pa.field("item", pa.string()))),
        (pa.array([1, None, 2], pa.timestamp("s")), pa.timestamp("ms")),
        (pa.array([1, None, 2], pa.time32("s")), pa.time32("ms")),
        (pa.array([0, None, 86_400_000], pa.date64()), pa.date32()),
        (pa.array([5, None, 5]).dictionary_encode(), pa.int64()),
    ],
    ids=str,
)
def test_types_that_parquet_lacks_become_the_nearest(column: pa.Array[Any], expected: pa.DataType) -> None:
    found = through(table_source(pa.table({"prompt": ["p"] * 3, "own": column}))).column("own")
    assert found.type.equals(expected) or str(found.type).replace("element", "item") == str(expected)
    assert found.to_pylist() == column.to_pylist()


def test_a_type_that_no_parquet_file_holds_is_refused_by_its_column() -> None:
    table = pa.table({"prompt": ["p"], "own": pa.array([(1, 2, 3)], pa.month_day_nano_interval())})
    with pytest.raises(InputError, match=r"the column 'own' has the type .*interval.*--drop-columns own"):
        through(table_source(table))
    assert through(table_source(table), drop_columns=("own",)).column_names == ["prompt"]


def test_frames_of_pandas_and_polars_come_through() -> None:
    frame = pd.DataFrame(
        {"prompt": ["a", "b"], "kind": pd.Categorical(["x", "y"]), "count": pd.array([1, None], "Int64")}
    )
    found = through(table_source(frame[::-1]))
    assert found.column_names == ["prompt", "kind", "count"]
    assert found.to_pydict() == {"prompt": ["b", "a"], "kind": ["y", "x"], "count": [None, 1]}
    rich = pl.DataFrame({"prompt": ["a"], "list": [["x"]], "price": pl.Series(["1.10"]).cast(pl.Decimal(10, 2))})
    assert pl.from_arrow(through(table_source(rich))).equals(rich)  # type: ignore[union-attr]


def test_only_the_columns_that_are_asked_for_are_read_and_carried(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"title": ["a", "b"], "code": [1, 2], "n": [2, 1], "big": ["x", "y"]}), path)
    source, template = open_source(path), Template.parse("About {title}")
    assert through(source, template=template, keep_columns=("code",)).to_pydict() == {"code": [1, 2]}
    rows = list(source)
    assert [row.values for row in rows if isinstance(row, SourceRow)] == [
        {"title": "a", "n": 2},
        {"title": "b", "n": 1},
    ]


def test_values_that_python_lacks_stand_in_prompts_as_text() -> None:
    code = (
        "import pyarrow as pa\n"
        "from jobs.parquet import keep_pandas_out\n"
        "keep_pandas_out()\n"
        "from producer.sources import table_source\n"
        "table = pa.table({'at': pa.array([1_700_000_000_123_456_789], pa.timestamp('ns'))})\n"
        "print(next(iter(table_source(table))).values['at'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2023-11-14T22:13:20.123456789\n"


def test_chat_messages_in_columns_are_messages() -> None:
    chat = [{"role": "user", "content": "hello", "name": None}]
    (row,) = chain.from_iterable(Checking(table_source(pa.table({"messages": [chat]})), RowOptions()).blocks())
    assert row.messages == [{"role": "user", "content": "hello"}]


class TestFiles:
    def test_a_row_is_named_by_its_number(self, tmp_path: Path) -> None:
        path = str(tmp_path / "a.parquet")
        pq.write_table(pa.table({"prompt": ["a", None, "c"]}), path)
        with pytest.raises(SourceError, match=r"a\.parquet:2: has no prompt"):
            through(open_source(path))

    def test_feather_and_both_arrow_formats_are_read(self, tmp_path: Path) -> None:
        table = pa.table({"prompt": [f"p{i}" for i in range(3000)], "n": [1] * 3000})
        with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table, max_chunksize=700)
        with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        pl.from_arrow(table).write_ipc(tmp_path / "c.feather")  # type: ignore[union-attr]
        for name in ("a.arrow", "b.arrow", "c.feather"):
            rows = list(open_source(str(tmp_path / name)))
            assert [row.line for row in rows] == list(range(1, 3001))

    def test_files_of_a_glob_are_one_source_with_the_columns_of_all(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"prompt": ["a"], "k": pa.array([1], pa.int32())}), tmp_path / "1.parquet")
        pq.write_table(
            pa.table({"k": pa.array([2], pa.int64()), "prompt": ["b"], "late": ["x"]}), tmp_path / "2.parquet"
        )
        found = through(open_source(str(tmp_path / "*.parquet")))
        assert found.to_pydict() == {"prompt": ["a", "b"], "k": [1, 2], "late": [None, "x"]}
        assert found.schema.field("k").type == pa.int64()

    def test_files_whose_columns_exclude_each_other_are_refused(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"prompt": ["a"], "k": [1]}), tmp_path / "1.parquet")
        pq.write_table(pa.table({"prompt": ["b"], "k": ["x"]}), tmp_path / "2.parquet")
        with pytest.raises(InputError, match=r"2\.parquet: its columns do not fit those of .*1\.parquet"):
            open_source(str(tmp_path / "*.parquet"))

    def test_stdin_and_compressed_files_are_read_too(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.table({"prompt": ["a", "b"]}), buffer)
        source = open_source("-", format="parquet", stdin=io.BytesIO(buffer.getvalue()))
        assert prompts(source) == prompts(source) == ["a", "b"]
        (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(buffer.getvalue()))
        assert prompts(open_source(str(tmp_path / "a.parquet.gz"))) == ["a", "b"]

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"text\n", b"ARROW1\0\0", b"FEA1" + b"\0" * 100, b"\0" * 64])
    @pytest.mark.parametrize("kind", ["parquet", "arrow"])
    def test_what_is_no_such_file_is_refused_in_one_line(self, tmp_path: Path, kind: str, content: bytes) -> None:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content)
        with pytest.raises(SourceError) as caught:
            open_source(str(path))
        assert str(caught.value).startswith(f"{path}: cannot be read")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("kind", ["parquet", "arrow"])
    def test_a_file_that_was_cut_or_changed_anywhere_is_refused_or_read_but_never_a_traceback(
        self, tmp_path: Path, kind: str
    ) -> None:
        table = pa.table({"prompt": [f"prompt {i}" for i in range(50)], "own": [[i] for i in range(50)]})
        whole = io.BytesIO()
        if kind == "parquet":
            pq.write_table(table, whole, write_page_checksum=True)
        else:
            with pa.ipc.new_file(whole, table.schema) as file:
                file.write_table(table)
        content, path = whole.getvalue(), tmp_path / f"a.{kind}"
        changed = [content[:size] for size in range(0, len(content), 37)]
        changed += [content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :] for at in range(0, len(content), 11)]
        refused = 0
        for damaged in changed:
            path.write_bytes(damaged)
            with contextlib.suppress(InputError):
                through(open_source(str(path)), size=20)
                refused -= 1
            refused += 1
        assert refused > len(changed) // 3

    def test_no_rows_and_two_columns_of_one_name_are_refused(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")
        with pytest.raises(SourceError, match="has no rows"):
            open_source(str(tmp_path / "a.parquet"))
        twice = pa.table([["a"], ["b"]], names=["prompt", "prompt"])
        with pytest.raises(InputError, match="the column 'prompt' occurs twice"):
            table_source(twice)


@pytest.mark.parametrize("kind", ["table", "parquet", "arrow"])
def test_a_template_without_columns_has_a_row_for_each_of_the_source(tmp_path: Path, kind: str) -> None:
    table, path = pa.table({"a": range(5)}), str(tmp_path / f"a.{kind}")
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    elif kind == "arrow":
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    source = table_source(table) if kind == "table" else open_source(path)
    assert prompts(source, template=Template.parse("Tell a joke"), drop_columns=("a",)) == ["Tell a joke"] * 5


@pytest.mark.parametrize("nested", [False, True])
def test_dictionaries_of_files_are_together_larger_than_the_indexes_of_one(tmp_path: Path, nested: bool) -> None:
    names = [f"{number}" for number in range(200)]
    for file in range(2):
        part = pa.array(names[100 * file : 100 * file + 100])
        own: pa.Array[Any] = pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), part)
        if nested:
            own = pa.StructArray.from_arrays([own], ["inner"])
        pq.write_table(pa.table({"prompt": ["p"] * 100, "own": own}), tmp_path / f"{file}.parquet")
    found = through(open_source(str(tmp_path)), 64).column("own").to_pylist()
    assert found == ([{"inner": name} for name in names] if nested else names)


@pytest.mark.parametrize("unit", ["timestamp", "duration", "time64"])
def test_a_prompt_does_not_depend_on_the_nanoseconds_of_other_rows(unit: str) -> None:
    kind = getattr(pa, unit)("ns")
    table = pa.table({"at": pa.array([86_399_000_000_000, 1_000, 1], kind)})
    template = Template.parse("{at}")
    alone = [prompts(table_source(table.slice(row, 1)), template=template)[0] for row in range(3)]
    assert prompts(table_source(table), template=template) == alone


def test_a_time_that_nobody_can_write_is_no_prompt() -> None:
    table = pa.table({"at": pa.array([0, 10**18], pa.timestamp("us"))})
    with pytest.raises(InputError, match=r"values of the column 'at' \(timestamp\[us\]\) cannot be read"):
        prompts(table_source(table), template=Template.parse("{at}"))


class TestFolders:
    def test_a_dataset_that_datasets_saved_is_read_in_the_order_of_its_state(self, tmp_path: Path) -> None:
        for name, rows in (("data-00001-of-00002.arrow", ["c"]), ("data-00000-of-00002.arrow", ["a", "b"])):
            table = pa.table({"prompt": rows})
            with pa.OSFile(str(tmp_path / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
        (tmp_path / "dataset_info.json").write_text("{}")
        (tmp_path / "state.json").write_text(
            '{"_data_files": [{"filename": "data-00000-of-00002.arrow"}, {"filename": "data-00001-of-00002.arrow"}]}'
        )
        assert prompts(open_source(str(tmp_path))) == ["a", "b", "c"]

    def test_of_several_splits_one_has_to_be_named(self, tmp_path: Path) -> None:
        (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        with pytest.raises(InputError, match=r"several splits \(train, test\): name one, for example .*/train"):
            open_source(str(tmp_path))

    def test_the_results_of_a_job_are_a_source(self, tmp_path: Path) -> None:
        folder = tmp_path / "job_id=first"
        folder.mkdir()
        duckdb.sql(f"COPY (SELECT 'one' AS text UNION ALL SELECT 'two') TO '{folder}/data-00000.parquet'")
        (folder / "_manifest.json").write_text("{}")
        (folder / "_SUCCESS").touch()
        assert prompts(open_source(str(folder)), prompt_column="text") == ["one", "two"]

    @pytest.mark.parametrize("state", ["", "[]", "{}", '{"_data_files": [{"filename": "../x.arrow"}]}'])
    def test_a_state_that_names_no_files_is_refused(self, tmp_path: Path, state: str) -> None:
        (tmp_path / "state.json").write_text(state)
        with pytest.raises(InputError, match="save the dataset again"):
            open_source(str(tmp_path))
