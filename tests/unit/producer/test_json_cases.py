"""What is JSON and what is not, case by case: a value as a row's member, and whole texts, as .jsonl and as .json.

Refused means a problem with file and line. Accepted means that Python's own reader finds the same value.
"""

from __future__ import annotations

import io
import json

import pytest

from jobs.errors import InputError, Problem, SourceError
from producer.sources import Item, open_source

_NUMBERS = b"0 -0 7 -7 10 1234567890 0.5 -0.5 1.0 1e5 1E5 1e+5 1E-5 1.5e300 -1.5E-300 0e0 0e+1 0.0e-9 1e-999 " \
           b"9223372036854775807 9223372036854775808 -9223372036854775808 -9223372036854775809 123456789012345678901 " \
           b"0.1000000000000000055511151231257827 4.9e-324".split()  # fmt: skip
_NO_NUMBERS = b"+1 -a - -- 01 -01 00 1. 1.e1 .5 -.5 . 1e 1e+ 1E- 1e5.5 1.5e 0x10 0b1 1_000 1,000 1a 1.2.3 e5 1+1 " \
              b"NaN nan -NaN Infinity -Infinity inf 1e999 -1e999 0E+ \xef\xbc\x91 1\xc2\xa0 1d 1L".split()  # fmt: skip

_STRINGS = [
    rb'""', rb'"a"', rb'"\u0061"', rb'"\u00e9"', rb'"\n\t\r\b\f"', rb'"\\"', rb'"\/"', rb'"/"', rb'"\""',
    rb'"\\\\\""', rb'"\u0000"', rb'"\u001f"', rb'"\ud83d\ude00"', rb'"\uD834\uDD1E"', rb'"\uffff"', rb'"\ufeff"',
    rb'"\u2028"', b'"\x7f"', '"é"'.encode(), '"日本"'.encode(), '"😀"'.encode(), '"\u2028"'.encode(),
    '"\ufeff"'.encode(), '"\U0010ffff"'.encode(), rb'"//"', rb'"/* */"', rb'"{}"', rb'"[,]"', rb'"\\u0061"',
    rb'"a\\"', b"'\"'"[1:2] + b'"', rb'"\\n"', b'" "',
]  # fmt: skip
_NO_STRINGS = [
    b'"', b'"a', b"a", b"'a'", b'"\\"', rb'"\a"', rb'"\x61"', rb'"\u"', rb'"\u1"', rb'"\u12"', rb'"\u123"',
    rb'"\u123g"', rb'"\U0061"', rb'"\ud800"', rb'"\udc00"', rb'"\ud800a"', rb'"\ud800\n"', rb'"\ud800\u0061"',
    rb'"\udc00\ud800"', rb'"\ud800\ud800"', b'"\t"', b'"\x1f"', b'"\x00"', b'"\xff"', b'"\xc3"', b'"\xc0\xaf"',
    b'"\xe0\x80\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xf8\x88\x80\x80\x80"', b'"\x80"', b'"a" "b"',
    b'"a"b', b'\\u0022a"', rb'"\ "', rb'"\0"', b'"\xe9"', b"`a`",
]  # fmt: skip

_VALUES = [
    b"null", b"true", b"false", b"[]", b"{}", b"[[]]", b"[{}]", b'{"":0}', b'{"a":{"a":{"a":0}}}', b"[1,2]",
    b"[ 1 , 2 ]", b'{ "a" : 1 }', b"[null,true,1,\"a\",{}]", b'{"a":1,"b":1}', b'{"a":1,"A":2}',
    b'[{"a":1},{"a":2}]', b"[" * 190 + b"]" * 190, b'{"a":' * 190 + b"0" + b"}" * 190, b" \t\r 1 \t\r ",
    b'{"a\\u0000b":1}', b'{"\\u0061":1}',
]  # fmt: skip
_NO_VALUES = [
    b"", b"nul", b"NULL", b"True", b"FALSE", b"undefined", b"None", b"[", b"]", b"[1", b"[1,", b"[1,]", b"[,1]",
    b"[,]", b"[1,,2]", b"[1 2]", b"[1;2]", b"(1)", b"[1}", b'{"a"', b'{"a":', b'{"a":1,', b'{"a":1,}', b'{,"a":1}',
    b'{"a" 1}', b'{"a"::1}', b'{"a"=1}', b'{"a":1 "b":2}', b"{a:1}", b"{'a':1}", b"{1:1}", b"{null:1}", b'{"a":1]',
    b'{"a","b"}', b'{"a":1,"a":1}', b'{"a":1,"\\u0061":2}', b'{"x":[{"k":0,"k":0}]}', b"[1]]", b"{}}", b"1 // no",
    b"/* no */ 1", b"# no", b"[1]x", b"\x0c1", b"\x0b1", b"\xc2\xa01", b"\xef\xbb\xbf1", b"\x001", b"[NaN]",
    b"[" * 201 + b"]" * 201, b'{"a":' * 201 + b"0" + b"}" * 201, b"[" * 5000 + b"]" * 5000, b"[" * 100_000, b"<a>",
    b"@", b"*1", b"&a", b"...", b"--\n1"[:2], b"1" * 5000,
]  # fmt: skip


def read(content: bytes, format: str) -> list[Item]:
    """The rows and problems; what ends the source is its last problem."""
    items: list[Item] = []
    try:
        for item in open_source("-", format=format, stdin=io.BytesIO(content)):
            items.append(item)
    except SourceError as error:
        items += error.problems
    except InputError as error:
        pytest.fail(f"without a place: {error}")
    return items


@pytest.mark.parametrize("format", ["jsonl", "json"])
@pytest.mark.parametrize("value", [*_NUMBERS, *_STRINGS, *_VALUES])
def test_a_value_is_read_as_python_reads_it(value: bytes, format: str) -> None:
    [item] = read(b'{"first": 1, "value": ' + value + b', "last": []}\n', format)

    assert not isinstance(item, Problem)
    assert repr(item.values) == repr({"first": 1, "value": json.loads(value), "last": []})


@pytest.mark.parametrize("format", ["jsonl", "json"])
@pytest.mark.parametrize("value", [*_NO_NUMBERS, *_NO_STRINGS, *_NO_VALUES])
def test_a_value_that_is_none_is_refused_with_its_line(value: bytes, format: str) -> None:
    items = read(b'{"good": 1}\n{"value": ' + value + b"}\n", format)

    problems = [item for item in items if isinstance(item, Problem)]
    assert problems
    # A NUL at the beginning of a file says that it is binary, whatever line it is in.
    assert problems[0].line == (1 if b"\0" in value and format == "json" else 2)
    assert problems[0].file == "stdin"
    assert "\n" not in str(problems[0])


#: Whole texts, how many rows and how many problems they have as .jsonl and as .json.
TEXTS: dict[str, tuple[bytes, tuple[int, int], tuple[int, int]]] = {
    "an object": (b'{"a": 1}', (1, 0), (1, 0)),
    "two objects on lines": (b'{"a": 1}\n{"a": 2}\n', (2, 0), (2, 0)),
    "two objects on one line": (b'{"a": 1} {"a": 2}', (0, 1), (2, 0)),
    "an object on lines": (b'{\n"a": 1\n}', (0, 3), (1, 0)),
    "an array of objects": (b'[{"a": 1}, {"a": 2}]', (0, 1), (2, 0)),
    "an array on lines": (b'[\n{"a": 1},\n{"a": 2}\n]\n', (1, 3), (2, 0)),
    "arrays": (b'[{"a": 1}] [{"a": 2}]', (0, 1), (1, 1)),
    "an empty array": (b"[]", (0, 1), (0, 1)),
    "an array of scalars": (b'[1, "a", null, true]', (0, 1), (0, 4)),
    "a number": (b"7", (0, 1), (0, 1)),
    "null": (b"null", (0, 1), (0, 1)),
    "nothing": (b"", (0, 1), (0, 1)),
    "blanks": (b" \n\t\n \r\n", (0, 1), (0, 1)),
    "blank lines between": (b'\n\n{"a": 1}\n\r\n \n{"a": 2}\n\n', (2, 0), (2, 0)),
    "CRLF": (b'{"a": 1}\r\n{"a": 2}\r\n', (2, 0), (2, 0)),
    "CR alone": (b'{"a": 1}\r{"a": 2}', (0, 1), (2, 0)),
    "a mark": (b'\xef\xbb\xbf{"a": 1}\n', (1, 0), (1, 0)),
    "a mark alone": (b"\xef\xbb\xbf", (0, 1), (0, 1)),
    "a mark twice": (b'\xef\xbb\xbf\xef\xbb\xbf{"a": 1}\n', (0, 1), (0, 1)),
    "a mark in the middle": (b'{"a": 1}\n\xef\xbb\xbf{"a": 2}\n', (1, 1), (1, 1)),
    "UTF-16 LE with a mark": ('{"a": 1}\n'.encode("utf-16"), (0, 1), (0, 1)),
    "UTF-16 BE with a mark": (b"\xfe\xff" + '{"a": 1}\n'.encode("utf-16-be"), (0, 1), (0, 1)),
    "UTF-16 without a mark": ('{"a": 1}\n'.encode("utf-16-le"), (0, 1), (0, 1)),
    "UTF-32": ('{"a": 1}\n'.encode("utf-32-le"), (0, 1), (0, 1)),
    "a NUL first": (b'\0{"a": 1}\n', (0, 1), (0, 1)),
    "a NUL last": (b'{"a": 1}\0', (0, 1), (0, 1)),
    "text behind an object": (b'{"a": 1} x\n{"a": 2}\n', (1, 1), (1, 1)),
    "text behind the last line": (b'{"a": 1}\nx', (1, 1), (1, 1)),
    "text behind an array": (b'[{"a": 1}]x', (0, 1), (1, 1)),
    "a comma behind an object": (b'{"a": 1},\n{"a": 2}\n', (1, 1), (1, 1)),
    "a comma too many in an array": (b'[{"a": 1},]', (0, 1), (1, 1)),
    "a comma too few in an array": (b'[{"a": 1}{"a": 2}]', (0, 1), (1, 1)),
    "an array that is cut": (b'[{"a": 1}, {"a"', (0, 1), (1, 1)),
    "an object without an end": (b'{"a": {}\n', (0, 1), (0, 1)),
    "an object that is cut": (b'{"a": {"b": 1\n', (0, 1), (0, 1)),
    "an array without an end": (b'[{"a": 1}', (0, 1), (1, 1)),
    "a closing bracket alone": (b"]", (0, 1), (0, 1)),
    "an opening bracket alone": (b"[", (0, 1), (0, 1)),
    "a comment first": (b'// x\n{"a": 1}\n', (1, 1), (0, 1)),
    "half of a character at the end": (b'{"a": 1}\n\xe2\x82', (1, 1), (0, 1)),
    "a bad line among good ones": (b'{"a": 1}\n{"a": }\n{"a": 3}\n', (2, 1), (1, 1)),
    "a key twice among good ones": (b'{"a": 1}\n{"a": 2, "a": 3}\n{"a": 4}\n', (2, 1), (2, 1)),
}


@pytest.mark.parametrize("format", ["jsonl", "json"])
@pytest.mark.parametrize("what", TEXTS)
def test_a_text_has_so_many_rows_and_problems(what: str, format: str) -> None:
    content, as_lines, as_json = TEXTS[what]
    items = read(content, format)

    problems = sum(isinstance(item, Problem) for item in items)
    assert (len(items) - problems, problems) == (as_lines if format == "jsonl" else as_json)
