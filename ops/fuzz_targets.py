"""What must hold whatever bytes a source has: ops/fuzz feeds these by coverage, hypothesis in tests/unit/producer.

Each takes bytes and returns nothing. InputError is an answer; any other error, and any difference between two ways of
reading the same bytes, is a finding.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError, Problem, SourceError
from producer.batches import BatchBuilder
from producer.check import Checking
from producer.columns import ArrowRow
from producer.messages import check_messages
from producer.problems import RowProblem
from producer.requests import CheckedRow
from producer.rows import RowChecker, RowOptions
from producer.sources import Item, json_array, lines, open_source
from producer.sources.jsonl import read_jsonl, read_object
from producer.template import Template, TemplateError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TEXT_FORMATS = ("jsonl", "json", "csv", "tsv", "txt")
FORMATS = (*TEXT_FORMATS, "parquet", "arrow", "jsonl.gz", "csv.zst", "parquet.gz")

#: Bytes of the longest line where one that is longer is to be met.
SMALL_LINE = 200


@contextmanager
def small(chunk: int) -> Iterator[None]:
    """Reads in chunks of so many bytes, so that a small file has many."""
    with patch.object(lines, "_CHUNK", chunk), patch.object(json_array, "_BLOCK", chunk):
        yield


def read(content: bytes, format: str, *, skip_invalid: bool = False) -> list[CheckedRow]:
    """All that a submit does with a source before it writes. Raises InputError."""
    source = open_source("-", format=format, stdin=io.BytesIO(content))
    checking = Checking(source, RowOptions(), show=2, skip_invalid=skip_invalid)
    builder = BatchBuilder(3, source.types)
    rows: list[CheckedRow] = []

    def blocks() -> Iterator[object]:
        for block in checking.blocks():
            rows.extend(block)
            yield block

    for batch in builder.batches(blocks()):  # type: ignore[arg-type]
        batch.table.validate(full=True)
    builder.digest(b"")
    builder.columns()
    assert all("\n" not in str(problem) for problem in checking.report.problems)
    json.dumps(checking.report.to_json())
    checking.report.raise_if_bad()
    return rows


def no_other_error(content: bytes, format: str) -> None:
    for skip_invalid in (False, True):
        with suppress(InputError):
            read(content, format, skip_invalid=skip_invalid)


def same_in_small_chunks(content: bytes, format: str) -> None:
    """Where a chunk ends changes nothing."""
    if format == "json" and (b"\0" in content or "\ufffd" in content.decode(errors="replace")):
        return  # A chunk of it is refused whole, with the rows that come before.
    longest = lines.MAX_LINE if format == "json" else SMALL_LINE
    with patch.object(lines, "MAX_LINE", longest):
        whole = items(content, format)
        with small(1 + (content[0] if content else 0) % 50):
            assert items(content, format) == whole


def items(content: bytes, format: str) -> list[str]:
    """The rows and problems of a source, in words; what ends it last."""
    found = []
    try:
        for item in open_source("-", format=format, stdin=io.BytesIO(content)):
            found.append(_shown(item))
    except SourceError as error:
        found += [_shown(problem) for problem in error.problems]
    except InputError as error:
        found.append(str(error))
    return found


def _shown(item: Item) -> str:
    return str(item) if isinstance(item, Problem) else f"{item.line}: {item.values!r}"


def json_lines_alike(content: bytes) -> None:
    """Blocks of lines, and one line after the other, give the same rows and problems."""
    try:
        blocks = list(read_jsonl(io.BytesIO(content), "f"))
    except SourceError:
        return
    found = [item for block in blocks for item in ([block] if isinstance(block, Problem) else block.rows())]
    split = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    ended = [line + b"\n" for line in split[:-1]] + split[-1:]
    single = [item for number, line in enumerate(ended, 1) if (item := read_object(line, "f", number)) is not None]
    assert list(map(_shown, found)) == list(map(_shown, single))


def blocks_checked_alike(content: bytes, format: str, options: RowOptions | None = None) -> None:
    """Rows that are checked at once are checked as they are one by one."""

    def checked(one_by_one: bool) -> list[tuple[object, ...]]:
        source = open_source("-", format=format, stdin=io.BytesIO(content))
        checker = RowChecker(options or RowOptions(), source)
        rows: list[CheckedRow] = []
        with suppress(SourceError):
            for block in source.blocks():
                if isinstance(block, Problem):
                    continue
                rows += map(checker.check, block.rows()) if one_by_one else checker.check_block(block)
        return [(*map(repr, row[:-2]), _own(row), row.problem) for row in rows]

    with suppress(InputError):
        assert checked(False) == checked(True)


def _own(row: CheckedRow) -> str:
    own = row.own
    # As Arrow shows it: not all of its values have a Python type.
    return str(own.batch.slice(own.place, 1).to_struct_array()) if isinstance(own, ArrowRow) else repr(own)


def requests(content: bytes) -> None:
    """As the body of an OpenAI batch request, after a good one."""
    good = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "p"}}
    line = b'{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": ' + content + b"}"
    no_other_error(json.dumps(good).encode() + b"\n" + line + b"\n", "jsonl")


def messages(content: bytes) -> None:
    with suppress(RowProblem, UnicodeDecodeError):
        json.dumps(check_messages(content.decode(), "m"))


def template(content: bytes) -> None:
    with suppress(InputError, TemplateError, UnicodeDecodeError):
        parsed = Template.parse(content.decode())
        assert parsed.render(dict.fromkeys(parsed.fields, "")) == "".join(parsed.literals)


def _parser(format: str) -> Callable[[bytes], None]:
    def run(content: bytes) -> None:
        no_other_error(content, format)
        blocks_checked_alike(content, format)
        if format in TEXT_FORMATS:
            same_in_small_chunks(content, format)
        if format == "jsonl":
            json_lines_alike(content)

    return run


TARGETS: dict[str, Callable[[bytes], None]] = {
    **{format: _parser(format) for format in FORMATS},
    "requests": requests,
    "messages": messages,
    "template": template,
}


def _table() -> pa.Table:
    rows = [{"a": 1}, None]
    return pa.table(
        {
            "id": ["x", "y"], "prompt": ["one", "two"], "n": pa.array([1, None], pa.int64()), "s": rows,
            "l": [[1, 2], []], "d": pa.array(["u", "v"]).dictionary_encode(), "b": [True, None],
            "t": pa.array([1, 2], pa.timestamp("ns", "UTC")), "v": [b"\0", None],
        }
    )  # fmt: skip


def _arrow(stream: bool) -> bytes:
    table, out = _table(), io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def _parquet(compression: str) -> bytes:
    out = io.BytesIO()
    pq.write_table(_table(), out, compression=compression, write_page_checksum=True)
    return out.getvalue()


_LINES = (
    b'{"id": "x", "prompt": "caf\xc3\xa9 \\ud83d\\ude00 \\"quoted\\" \\\\", "max_tokens": 7}\n'
    b'{"id": 7, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "k": [1.5e3, null]}\r\n'
)
_ARRAY = b'\xef\xbb\xbf[{"id": "x", "prompt": "a"},\n {"id": "y", "prompt": "b", "deep": {"a": [[]], "n": -0.0}}]\n'
_CSV = b'id,prompt,stop\r\nx,"a ""b""\nc",""\r\ny,d,"[""e""]"\r\n'


def seeds() -> dict[str, list[bytes]]:
    """Valid content for each target, to begin with."""
    return {
        "jsonl": [_LINES], "json": [_ARRAY, _LINES], "csv": [_CSV], "tsv": [_CSV.replace(b",", b"\t")],
        "txt": [b"\xef\xbb\xbfone\r\n\ntwo"], "parquet": [_parquet("snappy"), _parquet("none")],
        "arrow": [_arrow(False), _arrow(True)], 
        "jsonl.gz": [gzip.compress(_LINES), gzip.compress(b"\n") + gzip.compress(_LINES)],
        "csv.zst": [zstd.compress(_CSV)], "parquet.gz": [gzip.compress(_parquet("snappy"))],
        "requests": [b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "top_p": 0.5, "stop": ["x"]}'],
        "messages": [b'[{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text"}]}]'],
        "template": [b"About {title}: {{{price}}}"],
    }  # fmt: skip
