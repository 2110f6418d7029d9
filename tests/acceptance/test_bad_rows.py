"""Rows that cannot become requests: told with file and line, all in one go, and nothing is enqueued."""

from __future__ import annotations

import json

import pytest

from tests.mill import Mill
from tests.refusals import GOOD, assert_nothing_enqueued, assert_refused, submit

_DEEP = b"[" * 500 + b"]" * 500

#: A line of a .jsonl file behind a good one, and what is said of it.
LINES: dict[str, tuple[bytes, str]] = {
    "malformed JSON": (b'{"prompt": nothing}', "malformed JSON at column 12"),
    "an array": (b'["a", "b"]', "holds an array"),
    "a string": (b'"a prompt"', "holds a string"),
    "single quotes": (b"{'prompt': 'a'}", "column 2"),
    "the first line of JSON over several": (b"{\n", "--format json"),
    "a comma at the end": (b'{"prompt": "a",}', "malformed JSON"),
    "a byte that is not UTF-8": (b'{"prompt": "caf\xe9"}', "0xE9"),
    "a NUL": (b'{"prompt": "a\0"}', "NUL"),
    "a key twice": (b'{"prompt": "a", "prompt": "b"}', "'prompt' occurs twice"),
    "NaN": (b'{"prompt": "a", "weight": NaN}', "NaN"),
    "Infinity": (b'{"prompt": "a", "temperature": -Infinity}', "Infinity"),
    "a number beyond floats": (b'{"prompt": "a", "weight": 1e999}', "too large for a float (column 27)"),
    "a number of thousands of digits": (b'{"prompt": "a", "weight": ' + b"9" * 5000 + b"}", "thousands of digits"),
    "half of a surrogate pair": (b'{"prompt": "a \\ud800 b"}', "surrogate"),
    "500 levels": (b'{"prompt": "a", "deep": ' + _DEEP + b"}", "more than 200 levels"),
    "100,000 levels": (b'{"prompt": "a", "deep": ' + b"[" * 100_000, "more than 200 levels"),
    "no prompt": (b'{"text": "a"}', "has no prompt"),
    "a prompt that is null": (b'{"prompt": null}', "has no prompt"),
    "a prompt that is a number": (b'{"prompt": 7}', "not a string: 7"),
    "a prompt that is a list": (b'{"prompt": ["a"]}', "not a string"),
    "a prompt that is empty": (b'{"prompt": ""}', "empty"),
    "a prompt of blanks": (b'{"prompt": " \\n\\u3000"}', "empty"),
    # Messages.
    "messages that are text": (b'{"messages": "hello"}', "is not JSON"),
    "messages that are one object": (b'{"messages": {"role": "user", "content": "a"}}', "must be a list"),
    "no messages": (b'{"messages": []}', "has no text"),
    "messages that are strings": (b'{"messages": ["a"]}', "messages[0] must be an object"),
    "messages in messages": (b'{"messages": [[{"role": "user", "content": "a"}]]}', "messages[0] must be an object"),
    "a message without a role": (b'{"messages": [{"content": "a"}]}', "messages[0].role"),
    "an unknown role": (b'{"messages": [{"role": "bot", "content": "a"}]}', "not 'bot'"),
    "a role that is a list": (b'{"messages": [{"role": ["user"], "content": "a"}]}', "messages[0].role"),
    "a message without content": (b'{"messages": [{"role": "user"}]}', "messages[0].content"),
    "content that is a number": (b'{"messages": [{"role": "user", "content": 5}]}', "messages[0].content"),
    "content that is an object": (b'{"messages": [{"role": "user", "content": {}}]}', "messages[0].content"),
    "an image": (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "only text"),
    "a part that is a string": (b'{"messages": [{"role": "user", "content": ["a"]}]}', "a part without text"),
    "a name that is no text": (b'{"messages": [{"role": "user", "content": "a", "name": 5}]}', "name must be a string"),
    "tool calls that are text": (b'{"messages": [{"role": "assistant", "tool_calls": "x"}]}', "must be a list"),
    "an unknown field": (b'{"messages": [{"role": "user", "content": "a", "mood": "b"}]}', "'mood'"),
    "a field of 100,000 characters": (
        b'{"messages": [{"role": "user", "content": "a", "' + b"x" * 100_000 + b'": 1}]}', "not supported"),
    # Sampling parameters.
    "temperature": (b'{"prompt": "a", "temperature": "hot"}', "a number from 0 to 100"),
    "top_p": (b'{"prompt": "a", "top_p": 0}', "above 0 to 1"),
    "top_k": (b'{"prompt": "a", "top_k": -1}', "an integer from 0"),
    "min_p": (b'{"prompt": "a", "min_p": 1.1}', "from 0 to 1"),
    "max_tokens": (b'{"prompt": "a", "max_tokens": 1.5}', "an integer from 1"),
    "n": (b'{"prompt": "a", "n": 0}', "from 1 to 1000"),
    "n that is true": (b'{"prompt": "a", "n": true}', "from 1 to 1000"),
    "seed": (b'{"prompt": "a", "seed": 18446744073709551616}', "an integer from 0"),
    "repetition_penalty": (b'{"prompt": "a", "repetition_penalty": 0}', "above 0"),
    "stop": (b'{"prompt": "a", "stop": ["x", 1]}', "a list of at most 16 strings"),
    "stop_token_ids beyond 64 bits": (b'{"prompt": "a", "stop_token_ids": [1e300]}', "an integer or a list"),
    "logprobs": (b'{"prompt": "a", "logprobs": 1}', "true or false"),
}  # fmt: skip


@pytest.mark.parametrize("what", LINES)
def test_a_bad_line_is_told_with_its_number(idle: Mill, what: str) -> None:
    line, said = LINES[what]
    path = idle.write("bad.jsonl", GOOD + line + b"\n")

    assert_refused(idle, submit(idle, path, "--id-column", ""), f"{path}:2: ", said)


IDS: dict[str, tuple[list[object], int, str]] = {
    "empty": ([""], 1, "is empty"),
    "null": (["x", None], 2, "is missing"),
    "a fraction": ([1.5], 1, "no string or integer"),
    "a boolean": ([True], 1, "no string or integer"),
    "a list": ([[1]], 1, "no string or integer"),
    "too long": (["x" * 513], 1, "513 characters"),
    "a line break": (["a\nb"], 1, "U+000A"),
    "a control character": (["a\u0085"], 1, "U+0085"),
    "twice": (["x", "y", "x"], 3, "'x' repeats the one at line 1"),
    "twice, as a number and as text": ([1, "1"], 2, "'1' repeats the one at line 1"),
}


@pytest.mark.parametrize("what", IDS)
def test_a_bad_id_is_told_with_its_line(idle: Mill, what: str) -> None:
    ids, line, said = IDS[what]
    path = idle.write("bad.jsonl", "".join(json.dumps({"id": one, "prompt": "a"}) + "\n" for one in ids))

    assert_refused(idle, submit(idle, path), f"{path}:{line}: ", said)


def test_an_id_that_another_file_has_is_told_with_both_places(idle: Mill) -> None:
    first = idle.write("a.csv", "id,prompt\nx,a\n")
    second = idle.write("b.csv", "id,prompt\n\nx,b\n")

    assert_refused(idle, submit(idle, f"{idle.folder}/*.csv"), f"{second}:3: ", f"'x' repeats the one at {first}:2")


#: A whole file, the line at fault (None: the file), and what is said.
FILES: dict[str, tuple[str, bytes, int | None, str]] = {
    "nothing": ("x.jsonl", b"", None, "no rows"),
    "blank lines": ("x.jsonl", b"\n\r\n  \n", None, "no rows"),
    "UTF-16": ("x.jsonl", GOOD.decode().encode("utf-16"), None, "UTF-16"),
    "UTF-16 without a mark": ("x.jsonl", GOOD.decode().encode("utf-16-le"), 1, "UTF-16"),
    "a cut last line": ("x.jsonl", GOOD + GOOD + b'{"prompt": "it en', 3, "cut"),
    "no prompt in any row": ("x.jsonl", b'{"text": "a"}\n', 1, "--prompt-column"),
    "another case": ("x.jsonl", b'{"Prompt": "a"}\n', 1, "did you mean 'Prompt'?"),
    "a name with a line break": ("x.jsonl", b'{"pro\\nmpt": "a"}\n', 1, "(columns: pro\\nmpt)"),
    "a name that colours the terminal": ("x.jsonl", b'{"\\u001b[31m": "a"}\n', 1, "(columns: \\x1b[31m)"),
    "more than 2,000 columns": (
        "x.jsonl", json.dumps({"prompt": "a", **{f"c{i}": i for i in range(2001)}}).encode(), None, "--keep-columns"),
    "a cut array": ("x.json", b'[{"prompt": "a"},\n {"prom', 2, "cut"),
    "an array of strings": ("x.json", b'["a"]', 1, "holds a string"),
    "an empty array": ("x.json", b"[]", None, "no rows"),
    "a comma too many": ("x.json", b'[{"prompt": "a"},\n]', 2, "malformed JSON"),
    "a comma too few": ("x.json", b'[{"prompt": "a"}\n{"prompt": "b"}]', 2, "a comma"),
    "text behind the array": ("x.json", b'[{"prompt": "a"}]\nx', 2, "text after the closing bracket"),
    "rows in an object": ("x.json", b'{"data": [{"prompt": "a"}]}', 1, "(columns: data)"),
    "no prompt column": ("x.csv", b"title\nlamp\n", 2, "--prompt-column"),
    "too many fields": ("x.csv", b"prompt,b\na,1\nb,2,3\n", 3, "3 fields where the header has 2"),
    "a quote that never ends": ("x.csv", b'prompt\nb\n"a\n', 3, "never closed"),
    "text behind a quote": ("x.csv", b'prompt,b\n"a"x,1\n', 2, "malformed row"),
    "a carriage return": ("x.csv", b"prompt\na\rb\n", 2, "carriage return"),
    "a column twice": ("x.csv", b"prompt,a,a\nx,1,2\n", 1, "'a' twice"),
    "a column without a name": ("x.csv", b",prompt\n1,a\n", 1, "has no name"),
    "a header alone": ("x.csv", b"prompt\n", None, "no rows"),
    "a header that is not UTF-8": ("x.csv", b"pr\xe9mpt\na\n", 1, "0xE9"),
    "semicolons": ("x.csv", b"id;prompt\n1;a\n", 2, "separated by ';'"),
    "commas in a TSV": ("x.tsv", b"id,prompt\n1,a\n", 2, "(columns: id,prompt)"),
    "a number that is none": ("x.csv", b"prompt,max_tokens\na,many\n", 2, "an integer from 1"),
    "a number that is infinite": ("x.csv", b"prompt,max_tokens\na,1e400\n", 2, "an integer from 1"),
    "NaN in a CSV": ("x.csv", b"prompt,temperature\na,nan\n", 2, "a number from 0"),
    "a stop list that is none": ("x.csv", b'prompt,stop\na,"[""x"""\n', 2, "a list of at most 16"),
    "messages that are no JSON": ("x.csv", b"messages\nhello\n", 2, "is not JSON"),
    "messages with a key twice": (
        "x.csv", b'messages\n"[{""role"":""user"",""role"":""user"",""content"":""a""}]"\n', 2, "'role' occurs twice"),
    "messages of 900 levels": (
        "x.csv", b'messages\n"[{""role"":""user"",""content"":' + b"[" * 900 + b"]" * 900 + b'}]"\n', 2, "levels"),
    "text that is not UTF-8": ("x.txt", b"a\ncaf\xe9\n", 2, "0xE9"),
    "a NUL in a text": ("x.txt", b"a\nb\0\n", 2, "NUL"),
    "a text of blanks": ("x.txt", b" \n\t\n", None, "no rows"),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_a_bad_file_is_told_with_its_line(idle: Mill, what: str) -> None:
    name, content, line, said = FILES[what]
    path = idle.write(name, content)

    assert_refused(idle, submit(idle, path), f"{path}:{line}: " if line else "", said)


def test_all_that_is_wrong_is_told_in_one_go_and_the_good_rows_are_not_accepted(idle: Mill) -> None:
    bad = [line for line, _ in LINES.values() if b"\n" not in line]
    path = idle.write("bad.jsonl", b"".join(GOOD + line + b"\n" for line in bad))
    done = submit(idle, path, "--batch-size", "1")

    lines = done.err.splitlines()
    assert done.code == 2
    assert [line.split(": ")[1] for line in lines[:-1]] == [f"{path}:{number}" for number in range(2, 41, 2)]
    assert lines[-1] == f"... and {len(bad) - 20} more"
    assert_nothing_enqueued(idle)

    report = idle.call("check", path, "--json").json
    assert [problem["line"] for problem in report["problems"]] == [2 * number for number in range(1, len(bad) + 1)]
    assert (report["total_problems"], report["invalid"], report["rows"]) == (len(bad), len(bad), 2 * len(bad))
