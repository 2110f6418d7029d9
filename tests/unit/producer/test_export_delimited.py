"""CSV and TSV: what was in the cells comes back from the readers that people use, and no spreadsheet runs it."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.export.delimited import write_delimited

NASTY = ["plain", "two\nlines", "a\r\nb", 'say "no"', "a,b;c\td", "", " ", "\u2028", "ende\\", "🎈", "NULL", "nan", '"']


def written(table: pa.Table, **options: Any) -> str:
    out = io.BytesIO()
    assert write_delimited(table.to_batches(max_chunksize=3), table.schema, out, **options) == table.num_rows
    return out.getvalue().decode()


def records(text: str, delimiter: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))


def cell(value: str, **options: Any) -> str:
    (_, (_, found)) = records(written(pa.table({"id": [1], "cell": [value]}), **options))
    return found


@given(
    st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.text("=\n\t\" ,'-1"))
    )
)
def test_any_text_comes_back_where_nothing_is_escaped(rows: list[tuple[str, str]]) -> None:
    table = pa.table(
        {"a,\nb": pa.array([a for a, _ in rows], pa.string()), "c": pa.array([c for _, c in rows], pa.string())}
    )

    assert records(written(table, escape=False)) == [["a,\nb", "c"], *map(list, rows)]
    assert records(written(table, escape=False, delimiter="\t"), "\t")[1:] == [list(row) for row in rows]


@given(
    st.text(" \t\u2003\u00a0\x1f=+-@\uff1dx1")
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
)
def test_escaped_text_is_the_text_or_the_text_behind_an_apostrophe(value: str) -> None:
    found = cell(value)

    assert found in (value, f"'{value}")
    assert not found.lstrip().startswith(("=", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))


@pytest.mark.parametrize(
    "formula",
    [
        "=1+1",
        "+SUM(A1)",
        "-2+3",
        "@cmd",
        "\t=1",
        "\r=1",
        "\n=1",
        " =1",
        "\u00a0=1",
        "\ufeff@a",
        "\uff1d1",
        "\uff0b1",
        "\uff0dx",
        "\uff20x",
        "-",
        "\ttab",
    ],
)
def test_what_a_spreadsheet_takes_for_a_formula_gets_an_apostrophe(formula: str) -> None:
    assert cell(formula) == f"'{formula}"
    assert cell(formula, escape=False) == formula


@pytest.mark.parametrize("text", ["-5", "+3.25", "-1e-9", "a=b", "1-2", "'=1", "e@mail", ""])
def test_numbers_and_harmless_text_stay_as_they_are(text: str) -> None:
    assert cell(text) == text


def test_a_header_is_escaped_as_cells_are() -> None:
    assert records(written(pa.table({'=cmd|"x"': ["a"], "b": ["c"]})))[0] == ['\'=cmd|"x"', "b"]


def test_the_usual_readers_find_the_same_rows_nulls_and_empty_strings(tmp_path: Any) -> None:
    table = pa.table({"text": [*NASTY, None], "number": pa.array([*range(len(NASTY)), None], pa.int64())})
    path = tmp_path / "rows.csv"
    path.write_bytes(written(table).encode())

    polars = pl.read_csv(path)
    pandas = pd.read_csv(path, keep_default_na=False, lineterminator="\n")
    duck = duckdb.sql(f"FROM read_csv('{path}', allow_quoted_nulls = false, new_line = '\\n')").fetchall()
    assert polars["text"].to_list() == [*NASTY, None]
    assert polars["number"].to_list() == [*range(len(NASTY)), None]
    assert pandas["text"].to_list() == [*NASTY, ""]
    assert [row[0] for row in duck] == [*NASTY, None]


def test_a_record_of_one_null_is_no_blank_line() -> None:
    assert records(written(pa.table({"only": pa.array(["a", None, "b"])}))) == [["only"], ["a"], [""], ["b"]]


def test_other_types_are_written_as_text_that_can_be_read() -> None:
    table = pa.table({
        "flag": [True], "ratio": [0.1], "price": pa.array([Decimal("1.10")]), "raw": [b"\x00\xff"],
        "when": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns", "Europe/Berlin")),
        "local": pa.array([0], pa.timestamp("s")), "kind": pa.array(["a"]).dictionary_encode(),
        "tags": [["a", "=b"]], "size": [{"w": 1, "when": None}], "nothing": pa.nulls(1),
    })  # fmt: skip

    (head, row) = records(written(table))
    found = dict(zip(head, row, strict=True))
    assert found == {
        "flag": "true", "ratio": "0.1", "price": "1.10", "raw": "AP8=", "when": "2023-11-14T22:13:20.123456789Z",
        "local": "1970-01-01T00:00:00", "kind": "a", "tags": '["a","=b"]', "size": '{"w":1,"when":null}', "nothing": "",
    }  # fmt: skip
    assert json.loads(found["tags"]) == ["a", "=b"]


def test_an_export_without_rows_has_a_header() -> None:
    assert written(pa.table({"a": pa.array([], pa.string()), "b": pa.array([], pa.int64())})) == '"a","b"\n'
