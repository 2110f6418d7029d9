"""Templates substitute plain columns and nothing else."""

from __future__ import annotations

import json
import string
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import InputError
from producer.template import Template, TemplateError

_NAMES = st.text(string.ascii_letters + "_ äß-", min_size=1, max_size=8).filter(str.strip)


def test_fields_and_braces_are_rendered() -> None:
    template = Template.parse("About {title}, {{not}} {{{title}}}")
    assert template.fields == ("title", "title")
    assert template.render({"title": "tea"}) == "About tea, {not} {tea}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a {b} \\", "a {b} \\"), ("", ""), (1, "1"), (44.9, "44.9"), (True, "true"), (10**30, str(10**30)),
        ([1, "ä"], '[1,"ä"]'), ({"a": None}, '{"a":null}'), ([10**30], f"[{10**30}]"),
    ],
)  # fmt: skip
def test_values_are_rendered_like_json_but_strings_as_they_are(value: Any, text: str) -> None:
    assert Template.parse("<{v}>").render({"v": value}) == f"<{text}>"


@pytest.mark.parametrize("values", [{}, {"title": None}])
def test_a_missing_or_null_value_is_the_rows_error(values: dict[str, Any]) -> None:
    with pytest.raises(TemplateError, match=r"needs \{title\}") as caught:
        Template.parse("{title}").render(values)
    assert caught.value.field == "title"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a {b", "line 1, column 3"), ("a }", "line 1, column 3"), ("one\n {} x", "line 2, column 2"),
        ("{a.b}", "plain column name"), ("{a[0]}", "plain column name"), ("{a!r}", "plain column name"),
        ("{a:>5}", "plain column name"), ('{"key": 1}', "write '{{' and '}}'"), ("{{a}", "closes nothing"),
        ("{a}}", "closes nothing"), ("", "empty"), (" \n", "empty"),
    ],
)  # fmt: skip
def test_anything_but_plain_names_is_refused_with_its_position(text: str, where: str) -> None:
    with pytest.raises(InputError) as caught:
        Template.parse(text)
    assert where in str(caught.value)


def test_an_unknown_field_names_the_known_columns() -> None:
    with pytest.raises(InputError, match=r"no column 'titel', did you mean 'title'\? \(columns: id, title\)"):
        Template.parse("{titel}").check_fields(["id", "title"])


def test_a_template_file_loses_one_newline(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfA {b}\n\n")
    assert Template.load(f"@{tmp_path}/t").text == "A {b}\n"
    (tmp_path / "crlf").write_bytes(b"A {b}\r\n")
    assert Template.load(f"@{tmp_path}/crlf").text == "A {b}"


@pytest.mark.parametrize("content", [None, b"\xff", b"{", b"\n"])
def test_a_bad_template_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "template"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        Template.load(f"@{path}")


@given(st.text())
def test_any_text_parses_or_is_refused_in_words(text: str) -> None:
    with suppress(InputError):
        assert Template.parse(text).text == text


@given(st.lists(st.one_of(st.text(), st.tuples(_NAMES))), st.dictionaries(_NAMES, st.text()))
def test_rendering_is_the_concatenation_of_literals_and_values(
    pieces: list[str | tuple[str]], values: dict[str, str]
) -> None:
    text = "".join(
        "{%s}" % piece if isinstance(piece, tuple) else piece.replace("{", "{{").replace("}", "}}")  # noqa: UP031
        for piece in pieces
    )
    if not text.strip():
        return
    values |= {piece[0]: json.dumps(piece) for piece in pieces if isinstance(piece, tuple)}
    expected = "".join(values[piece[0]] if isinstance(piece, tuple) else piece for piece in pieces)
    assert Template.parse(text).render(values) == expected
