"""JSON files: arrays of objects and objects one after the other, however they are laid out."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import Problem, SourceError
from producer.sources import Item, SourceRow, lines, open_source


def read(content: bytes | str) -> list[Item]:
    stream = io.BytesIO(content.encode() if isinstance(content, str) else content)
    return list(open_source("-", format="json", stdin=stream))


def rows(content: bytes | str) -> list[tuple[int, dict[str, Any]]]:
    return [(item.line, item.values) for item in read(content) if isinstance(item, SourceRow)]


def refusal(content: bytes | str) -> Problem:
    """What ends the source, or is wrong with its one row."""
    try:
        (item,) = read(content)
    except SourceError as error:
        (problem,) = error.problems
        return problem
    assert isinstance(item, Problem)
    return item


@pytest.mark.parametrize("indent", [None, 1, 4])
def test_an_array_gives_its_objects_with_the_lines_they_begin_on(indent: int | None) -> None:
    content = json.dumps([{"a": 1, "b": ["x\n", "]"]}, {"a": "{"}], indent=indent)
    starts = [number for number, line in enumerate(content.splitlines(), 1) if line == " " * (indent or 0) + "{"]
    assert rows(content) == list(zip(starts or [1, 1], json.loads(content), strict=True))


@pytest.mark.parametrize(
    "content", ['{"a": 1}\n{"a": 2}\n', '{"a": 1} {"a": 2}', '{\n "a":\n 1\n}\n\n{"a": 2}', '{"a":1}{"a":2}']
)
def test_objects_one_after_the_other_are_rows_too(content: str) -> None:
    assert [values for _, values in rows(content)] == [{"a": 1}, {"a": 2}]


def test_a_byte_order_mark_is_no_content() -> None:
    assert rows(b'\xef\xbb\xbf[{"a": 1}]') == [(1, {"a": 1})]


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=3),
            st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
            max_size=3,
        ),
        min_size=1,
    ),
    st.integers(1, 7),
)
def test_every_array_is_read_back_wherever_its_blocks_end(objects: list[dict[str, Any]], block: int) -> None:
    content = json.dumps(objects, ensure_ascii=False).encode()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(block)

    found = list(open_source("-", format="json", stdin=Slow(content)))
    assert [item.values for item in found if isinstance(item, SourceRow)] == objects


def test_an_element_that_is_no_row_is_a_problem_and_the_others_are_read() -> None:
    first, second, third, fourth = read('[{"a": 1},\n 5,\n {"k": 1, "k": 2},\n {"a": 2}]')
    assert isinstance(first, SourceRow)
    assert isinstance(fourth, SourceRow)
    assert str(second) == 'stdin:2: holds a number: a row must be a JSON object, such as {"prompt": ...}'
    assert str(third) == "stdin:3: the key 'k' occurs twice in one object"


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        ("", None, "has no rows"),
        ("[]", None, "has no rows"),
        (" \n [ \n ] \n", None, "has no rows"),
        ("5", 1, "holds a number"),
        ('["a"]', 1, "holds a string"),
        ('[{"a": 1}', 1, "the file seems cut (column 10)"),
        ('[{"a": 1},', 1, "the file seems cut"),
        ('[{"a": 1},\n {"a": ', 2, "the file seems cut"),
        ('[{"a": "never', 1, "the file seems cut"),
        ('[\n{"a": 1}\n{"a": 2}]', 3, "a comma or the closing bracket of the array is missing (column 1)"),
        ('[{"a": 1},]', 1, "malformed JSON"),
        ('[,{"a": 1}]', 1, "malformed JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', 2, "text after the closing bracket of the array (column 1)"),
        ('[{"a": tru}]', 1, "malformed JSON: Expecting value (column 8)"),
        ("[{'a': 1}]", 1, "malformed JSON"),
        ('[\n{"a": NaN}]', 2, "NaN is not JSON"),
        ('[{"a": "\t"}]', 1, "malformed JSON"),
        ('[{"a": "\\ud800"}]', 1, "half of a surrogate pair"),
        (b'[{"a": 1},\n{"a": "\xe9"}]', 2, "byte 0xE9"),
        (b"\xff\xfe[\0]\0", None, "is UTF-16"),
        (b"PAR1aaaa", None, "is a Parquet file"),
        ("[" * 100_000, 1, "nested more than 200 levels deep"),
        ('[{"a": ' + "[" * 100_000, 1, "nested more than 200 levels deep"),
        ('[{"a": 1' + "0" * 5000 + "}]", 1, "thousands of digits"),
    ],
)  # fmt: skip
def test_what_is_no_such_array_is_refused_with_its_line(content: bytes | str, line: int | None, reason: str) -> None:
    try:
        problem = refusal(content)
    except ValueError:  # rows before the end of the source
        problem = refusal_after_rows(content)
    assert reason in problem.reason
    assert problem.line == line


def refusal_after_rows(content: bytes | str) -> Problem:
    stream = io.BytesIO(content.encode() if isinstance(content, str) else content)
    with pytest.raises(SourceError) as caught:
        list(open_source("-", format="json", stdin=stream))
    return caught.value.problems[0]


def test_a_value_that_is_too_long_ends_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE", 1000)
    assert "longer than" in refusal('[{"a": "' + "x" * 300_000 + '"}]').reason


def test_requests_of_openai_are_recognised_in_an_array_too() -> None:
    request = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "p"}}
    source = open_source("-", format="json", stdin=io.BytesIO(json.dumps([request]).encode()))
    assert source.openai
    assert [row.values for row in source if isinstance(row, SourceRow)] == [{"custom_id": "a", "prompt": "p"}]
