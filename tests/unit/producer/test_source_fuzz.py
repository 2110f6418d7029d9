"""Whatever bytes a file holds, it gives rows and problems, never another error; and what is valid is read whole."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import SourceError
from jobs.spec import SamplingParams
from ops.fuzz_targets import FORMATS, TARGETS, blocks_checked_alike, seeds, small
from ops.fuzz_targets import read as read_rows
from producer.rows import RowOptions
from producer.sources import Item, SourceRow, open_source
from producer.template import Template

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


@pytest.mark.parametrize("target", TARGETS)
@given(content=st.binary(max_size=200) | _NEAR)
@settings(max_examples=50)
def test_any_bytes_are_rows_or_problems(target: str, content: bytes) -> None:
    TARGETS[target](content)


@st.composite
def _mutated(draw: st.DrawFn, valid: list[bytes]) -> bytes:
    """Valid bytes after a few cuts, flips, repetitions and splices."""
    content = draw(st.sampled_from(valid))
    for _ in range(draw(st.integers(0, 3))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        kind = draw(st.sampled_from(["cut", "end", "flip", "repeat", "splice", "insert"]))
        piece = content[start:end]
        if kind == "flip" and piece:
            piece = bytes([piece[0] ^ 1 << draw(st.integers(0, 7))]) + piece[1:]
        elif kind == "repeat":
            piece *= 2
        elif kind == "splice":
            other = draw(st.sampled_from(valid))
            piece += other[draw(st.integers(0, len(other))) :]
        elif kind == "insert":
            piece = draw(_NEAR)
        content = content[:start] + (b"" if kind == "cut" else piece) + (b"" if kind == "end" else content[end:])
    return content


@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
@settings(max_examples=50)
def test_valid_bytes_that_were_damaged_are_rows_or_problems(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(_mutated(seeds()[target])))


@pytest.mark.parametrize("format", FORMATS)
def test_the_valid_bytes_are_valid(format: str) -> None:
    for content in seeds()[format]:
        assert len(read_rows(content, format)) == 2


@given(
    st.lists(_OBJECTS, min_size=1, max_size=6),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
)
def test_objects_are_read_back_wherever_a_chunk_ends(
    rows: list[dict[str, Any]], chunk: int, ascii_only: bool, end: str
) -> None:
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    with small(chunk):
        for content, format in (
            (end.join(texts), "jsonl"),
            (end.join(texts), "json"),
            (f"[{','.join(texts)}]", "json"),
        ):
            assert [item.values for item in read(content.encode(), format) if isinstance(item, SourceRow)] == rows


_PROMPTS = st.none() | st.text(max_size=4) | st.sampled_from(["a", " ", "", 7, True, 1.5, ["a"]])
_ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt": _PROMPTS, "id": _PROMPTS, "custom_id": _PROMPTS, "x": _VALUES,
            "n": st.sampled_from([1, 2, 0, "2", None]), "temperature": st.sampled_from([0.5, 0, -1, ""]),
            "messages": st.sampled_from([None, [], [{"role": "user", "content": "a"}], "x"]),
        },
    ),
    min_size=1, max_size=5,
)  # fmt: skip
_OPTIONS = st.sampled_from(
    [
        RowOptions(), RowOptions(chat=True), RowOptions(system="s"), RowOptions(id_column=""),
        RowOptions(id_column="x"),
        RowOptions(prompt_column="x"), RowOptions(messages_column="messages"),
        RowOptions(template=Template.parse("{prompt}{x}")),
        RowOptions(keep_columns=("x",)), RowOptions(drop_columns=("prompt",)), RowOptions(sampling=SamplingParams(n=2)),
    ]
)  # fmt: skip


@given(_ROWS, _OPTIONS)
def test_rows_checked_at_once_are_checked_as_one_by_one(rows: list[dict[str, Any]], options: RowOptions) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    blocks_checked_alike(content.encode(), "jsonl", options)


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
