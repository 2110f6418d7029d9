"""Whatever bytes a file holds, it gives rows and problems, never another error; and what is valid is read whole."""

from __future__ import annotations

import csv
import io
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError, SourceError
from producer.check import check
from producer.rows import RowOptions
from producer.sources import Item, SourceRow, open_source

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_OBJECTS = st.dictionaries(st.text(max_size=5), _VALUES, max_size=4)
#: Bytes that mean something to the parsers, so that random input comes near to valid input.
_PIECES = st.sampled_from(
    [
        *(bytes([byte]) for byte in b'{}[]":,\\ \t\n\r\0\xffa1'),
        *(b"\\u", b"\\ud800", b"1e9", b"\xef\xbb\xbf", b"prompt", b"null", b"NaN", b"\xc3\xa9"),
    ]
)
_NEAR = st.lists(_PIECES, max_size=40).map(b"".join)


def read(content: bytes, format: str) -> list[Item]:
    return list(open_source("-", format=format, stdin=io.BytesIO(content)))


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow", "jsonl.gz", "csv.zst"])
@given(content=st.binary(max_size=200) | _NEAR)
def test_any_bytes_are_rows_or_problems(format: str, content: bytes) -> None:
    with suppress(InputError):
        report = check(open_source("-", format=format, stdin=io.BytesIO(content)), RowOptions(), show=5)
        assert report.rows
        json.dumps(report.to_json())


@given(st.lists(_OBJECTS, min_size=1, max_size=5), st.booleans())
def test_every_object_is_read_back_exactly(rows: list[dict[str, Any]], ascii_only: bool) -> None:
    content = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    items = read(content.encode(), "jsonl")
    assert [item.values for item in items if isinstance(item, SourceRow)] == rows


@given(st.lists(st.tuples(st.text(max_size=3), _VALUES), min_size=1, max_size=5))
def test_an_object_is_refused_exactly_when_a_key_occurs_twice(members: list[tuple[str, Any]]) -> None:
    line = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in members) + "}"
    (item,) = read(line.encode(), "jsonl")
    assert isinstance(item, SourceRow) == (len({key for key, _ in members}) == len(members))


_FIELDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(_FIELDS, min_size=width, max_size=width), max_size=5)))
def test_every_csv_row_is_read_back_with_the_line_it_starts_on(rows: list[list[str]]) -> None:
    text = io.StringIO()
    header = [f"c{i}" for i in range(len(rows[0]) if rows else 1)]
    starts = []
    for row in (header, *rows):
        starts.append(text.getvalue().count("\n") + 1)
        csv.writer(text, quoting=csv.QUOTE_ALL).writerow(row)
    try:
        items = read(text.getvalue().encode(), "csv")
    except SourceError:
        assert not rows
        return
    found = [(item.line, list(item.values.values())) for item in items if isinstance(item, SourceRow)]
    assert found == list(zip(starts[1:], rows, strict=True))
