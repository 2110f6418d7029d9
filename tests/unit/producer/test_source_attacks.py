"""Sources made to hurt: without a line end, that unpack to far more than they are, or change while they are read."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import InputError, SourceError
from ops.fuzz_targets import small
from producer.check import Checking
from producer.digest import RowsDigest
from producer.rows import RowOptions
from producer.sources import SourceRow, open_source, rows_source

MIB = 1 << 20

#: In a process of its own: how much its memory grows beyond what it held before the first source, in MiB.
_MEASURE = """
import sys
from producer.check import Checking
from producer.rows import RowOptions
from producer.sources import arrow, open_source
from jobs.errors import InputError

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10

before = peak()
for path in sys.argv[1:]:
    try:
        checking = Checking(open_source(path), RowOptions())
        for block in checking.blocks():
            pass
        said = [str(problem) for problem in checking.report.problems]
    except InputError as error:
        said = [str(error)]
    print(peak() - before, *said)
"""


def _repeated(path: Path, start: bytes, piece: bytes, times: int, end: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(start)
        for _ in range(times):
            file.write(piece)
        file.write(end)
    return path


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the peak")
def test_memory_is_bounded_whatever_a_source_unpacks_to(tmp_path: Path) -> None:
    text = b"a" * MIB
    paths = [
        _repeated(tmp_path / "line.jsonl", b'{"prompt": "ok"}\n{"prompt": "', text, 100, b'"}\n'),
        _repeated(tmp_path / "line.txt", b"ok\n", text, 100, b"\n"),
        _repeated(tmp_path / "element.json", b'[{"prompt": "ok"}, {"prompt": "', text, 100, b'"}]'),
        _repeated(tmp_path / "number.json", b'[{"prompt": "ok"}, {"n": ', b"1" * MIB, 40, b"}]"),
        _repeated(tmp_path / "quote.csv", b'prompt\nok\n"', (b"a" * 1023 + b"\n") * 1024, 100, b""),
        _repeated(tmp_path / "header.csv", b"prompt", b",b" * (MIB // 2), 8, b"\n"),
        _repeated(tmp_path / "bomb.jsonl.gz", b'{"prompt": "', text, 300, b'"}\n'),
    ]
    table = pa.table({"prompt": pa.array(["a prompt of some length " * 4] * 400_000)})
    pq.write_table(table, tmp_path / "one-group.parquet", row_group_size=len(table))
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, paths), str(tmp_path / "one-group.parquet")],
        capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip

    lines = done.stdout.splitlines()
    assert len(lines) == len(paths) + 1
    for path, line in zip(paths, lines, strict=False):
        assert str(path) in line
        assert any(words in line for words in ("longer than 16 MiB", "twice")), line
    assert all(int(line.split()[0]) < 150 for line in lines), done.stdout


def checked(path: Path, change: Callable[[Path], object]) -> Checking:
    """A pass over a file that is changed once its first rows have been read."""
    checking = Checking(open_source(str(path)), RowOptions())
    blocks = checking.blocks()
    next(blocks)
    change(path)
    for _ in blocks:
        pass
    return checking


def _ids(count: int) -> Iterator[bytes]:
    """Rows of which the last has the first one's id."""
    for number in range(count):
        yield json.dumps({"id": f"x{number % (count - 1)}", "prompt": "a"}).encode() + b"\n"


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"id": "late", "prompt": "a"}\n')


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite(path: Path) -> None:
    path.write_bytes(b"".join(json.dumps({"id": f"y{n}", "prompt": "a"}).encode() + b"\n" for n in range(5000)))


@pytest.mark.parametrize("change", [_append, _halve, _overwrite])
@pytest.mark.parametrize("ids", [False, True])
def test_a_file_that_changes_while_it_is_read_is_not_accepted(
    tmp_path: Path, change: Callable[[Path], object], ids: bool
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(_ids(5000)) if ids else b'{"prompt": "a"}\n' * 20_000)
    with pytest.raises(SourceError, match="changed while it was read"):
        checked(path, change).report.raise_if_bad()


def test_ids_that_cannot_be_compared_again_are_no_reason_to_accept_them(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(_ids(5000)))
    with pytest.raises(SourceError, match="cannot be read"):
        checked(path, Path.unlink)


@pytest.mark.parametrize("chunk", range(1, 12))
@pytest.mark.parametrize("number", ["1.5", "1e5", "1E+5", "-0.25e-1"])
def test_a_number_is_whole_wherever_a_chunk_ends(number: str, chunk: int) -> None:
    content = f'{number} {{"a": {number}}}'.encode()
    with small(chunk):
        problem, row = open_source("-", format="json", stdin=io.BytesIO(content))

    assert "holds a number" in str(problem)
    assert isinstance(row, SourceRow)
    assert row.values == {"a": json.loads(number)}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_a_column_name_that_is_not_utf_8_is_told(tmp_path: Path, kind: str, nested: bool) -> None:
    table = pa.table({"prompt": ["a"], "s": [{"inner": 1}]})
    path = tmp_path / f"x.{kind}"
    if kind == "parquet":
        pq.write_table(table, path, store_schema=False)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    name = b"inner" if nested else b"prompt"
    path.write_bytes(path.read_bytes().replace(name, b"\xff" + name[1:]))
    with pytest.raises(InputError, match=r"x\.\w+: "):
        Checking(open_source(str(path)), RowOptions()).report.raise_if_bad()


def test_offsets_with_a_few_bytes_too_many_do_no_harm() -> None:
    offsets, text = struct.pack("<3i", 0, 2, 4), pa.py_buffer(b"abcd")
    digests = set()
    for extra in (b"", b"\0", bytes(7)):
        digest = RowsDigest()
        digest.add(
            ("own", "c", "string"), pa.StringArray.from_buffers(2, pa.py_buffer(offsets + extra), text), range(2)
        )
        digests.add(digest.hexdigest(b"", 2, {}))

    assert len(digests) == 1


def test_values_that_json_cannot_hold_are_told_in_python_too() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    rows = [
        {"a": 10**5000},
        {"a": 10**20, "b": "\ud800"},
        {"a": 10**20, "b": [float("nan")]},
        {"a": deep},
        {"a": 10**20},
    ]
    *problems, good = rows_source(rows)

    assert [str(problem).split(":")[1] for problem in problems] == ["1", "2", "3", "4"]
    assert isinstance(good, SourceRow)
    assert good.values == {"a": 10**20}
