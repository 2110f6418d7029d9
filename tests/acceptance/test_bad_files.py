"""Files that are damaged, compressed otherwise than they say, or of another format: told, and nothing is enqueued."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from producer.sources.opening import ZstdFile
from tests.mill import Mill
from tests.refusals import GOOD, assert_refused, submit


def _zst(content: bytes) -> bytes:
    out = io.BytesIO()
    with ZstdFile(out, "w") as packed:
        packed.write(content)
    return out.getvalue()


def _parquet(**columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def _arrow(table: pa.Table, writer: Callable[..., Any] = pa.ipc.new_file) -> bytes:
    out = io.BytesIO()
    with writer(out, table.schema) as opened:
        opened.write_table(table)
    return out.getvalue()


def _absurd(column: pa.Array[Any], numbers: tuple[int, ...], others: tuple[int, ...]) -> bytes:
    """An Arrow file in which the offsets or indices of ``column`` point elsewhere."""
    content = _arrow(pa.table({"prompt": ["a"] * len(column), "c": column}))
    before, after = (struct.pack(f"<{len(numbers)}i", *given) for given in (numbers, others))
    assert content.count(before) == 1
    return content.replace(before, after)


TABLE = pa.table({"prompt": ["a", "b", "c"]})
PARQUET, ARROW = _parquet(prompt=["a", "b", "c"]), _arrow(TABLE)
GZ, ZST = gzip.compress(GOOD * 1000), _zst(GOOD * 1000)
#: Arrow's own file of version 1, which is another format.
FEATHER_1 = b"FEA1" + bytes(50) + b"FEA1"
WORDS = pa.array(["u", "v", "w", "v"]).dictionary_encode()
INDICES = 0, 1, 2, 1
BAD_TEXT = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 4, 5)), pa.py_buffer(b"fine\xff"))

#: Name, content, and what is said.
FILES: dict[str, tuple[str, bytes, str]] = {
    # Compression.
    "gz that is cut": ("x.jsonl.gz", GZ[:-20], "damaged or cut"),
    "gz with a wrong checksum": ("x.jsonl.gz", GZ[:-8] + bytes(8), "damaged or cut"),
    "gz with a flipped byte": ("x.jsonl.gz", GZ[:30] + bytes([GZ[30] ^ 255]) + GZ[31:], "damaged or cut"),
    "gz with something behind it": ("x.jsonl.gz", GZ + b"garbage", "damaged or cut"),
    "gz within gz": ("x.jsonl.gz", gzip.compress(GZ), "is compressed with gzip"),
    "zst within gz": ("x.jsonl.gz", gzip.compress(ZST), "is compressed with zstd"),
    "gz of nothing": ("x.jsonl.gz", gzip.compress(b""), "no rows"),
    "gz that is plain": ("x.jsonl.gz", GOOD, "not compressed with gzip"),
    "gz that is zst": ("x.jsonl.gz", ZST, "not compressed with gzip"),
    "zst that is cut": ("x.jsonl.zst", ZST[:-9], "damaged or cut"),
    "zst that is plain": ("x.jsonl.zst", GOOD, "not compressed with Zstandard"),
    "zst within zst": ("x.jsonl.zst", _zst(ZST), "is compressed with zstd"),
    "gz without its ending": ("x.jsonl", GZ, "ends in .gz"),
    "zst without its ending": ("x.csv", ZST, "ends in .zst"),
    "csv.gz that is cut": ("x.csv.gz", gzip.compress(b"prompt\n" + b"a\n" * 999)[:-9], "damaged or cut"),
    "json.gz that is cut": ("x.json.gz", gzip.compress(b'[{"prompt": "a"}]')[:-9], "damaged or cut"),
    "txt.zst that is cut": ("x.txt.zst", _zst(b"a\n" * 99)[:-3], "damaged or cut"),
    "parquet.gz that is cut": ("x.parquet.gz", gzip.compress(PARQUET)[:-9], "damaged or cut"),
    "parquet.zst that is plain": ("x.parquet.zst", PARQUET, "not compressed with Zstandard"),
    "bzip2": ("x.jsonl", b"BZh91AY&SY", "bunzip2"),
    # Formats.
    "csv that is Parquet": ("x.csv", PARQUET, "add --format parquet"),
    "json that is Arrow": ("x.json", ARROW, "add --format arrow"),
    "txt that is a zip": ("x.txt", b"PK\x03\x04" + bytes(60), "zip or Excel"),
    "csv that is JSON": ("x.csv", GOOD, "looks like JSON"),
    "json that is CSV": ("x.json", b"prompt\na\n", ":1: malformed JSON"),
    "jsonl that is an array": ("x.jsonl", b'[{"prompt": "a"}]\n', "--format json"),
    "jsonl that is a database": ("x.jsonl", b"SQLite format 3\0", "SQLite"),
    "an Excel file": ("x.xlsx", b"PK\x03\x04", "export it as .csv"),
    "a tar file": ("x.jsonl.tar", b"", "unpack it"),
    # Parquet.
    "Parquet of nothing": ("x.parquet", b"", "0 bytes"),
    "Parquet that is text": ("x.parquet", GOOD, "another format"),
    "Parquet that is cut": ("x.parquet", PARQUET[:-10], "cut"),
    "Parquet with a hole": ("x.parquet", PARQUET[:8] + bytes(30) + PARQUET[38:], "damaged"),
    "Parquet that is gz": ("x.parquet", gzip.compress(PARQUET), "another format"),
    "Parquet without rows": ("x.parquet", _parquet(prompt=pa.array([], pa.string())), "no rows"),
    "Parquet without columns": ("x.parquet", _parquet(), "no rows"),
    "Parquet without prompts": ("x.parquet", _parquet(text=["a"]), "--prompt-column"),
    "Parquet with numbers as prompts": ("x.parquet", _parquet(prompt=[1]), ":1: the prompt (column 'prompt') is not"),
    "Parquet with bytes as prompts": ("x.parquet", _parquet(prompt=[b"a"]), ":1: the prompt (column 'prompt') is not"),
    "Parquet with nulls as prompts": ("x.parquet", _parquet(prompt=pa.nulls(1)), ":1: has no prompt"),
    "Parquet with text that is not UTF-8": ("x.parquet", _parquet(prompt=BAD_TEXT), "UTF8"),
    "Parquet with fractions as ids": ("x.parquet", _parquet(prompt=["a"], id=[1.5]), ":1: the id is no string"),
    "Parquet with the same id": ("x.parquet", _parquet(prompt=["a", "b"], id=[1, 1]), ":2: id '1' repeats"),
    # Arrow.
    "Arrow of nothing": ("x.arrow", b"", "cut"),
    "Arrow that is Parquet": ("x.arrow", PARQUET, "another format"),
    "Arrow that is cut": ("x.arrow", ARROW[:-10], "cut"),
    "an Arrow stream that is cut": ("x.arrow", _arrow(TABLE, pa.ipc.new_stream)[:-30], "cut"),
    "Feather version 1": ("x.feather", FEATHER_1, "version 2"),
    "a column twice": ("x.arrow", _arrow(pa.table([["a"], ["b"]], names=["prompt", "prompt"])), "occurs twice"),
    "a type that Parquet lacks": (
        "x.arrow", _arrow(pa.table({"prompt": ["a"], "m": pa.nulls(1, pa.month_day_nano_interval())})),
        "--drop-columns m"),
    "text that is not UTF-8": ("x.arrow", _arrow(pa.table({"prompt": BAD_TEXT})), "UTF8"),
    "offsets beyond the text": ("x.arrow", _absurd(pa.array(["ab", "cd"]), (0, 2, 4), (0, 2, 2**31 - 1)), "offset"),
    "offsets below nought": ("x.arrow", _absurd(pa.array(["ab", "cd"]), (0, 2, 4), (0, -2, 4)), "offset"),
    "offsets beyond the list": (
        "x.arrow", _absurd(pa.array([[1, 2], [3, 4]], pa.list_(pa.int64())), (0, 2, 4), (0, 2, 400_000)), "offset"),
    "an index beyond the dictionary": ("x.arrow", _absurd(WORDS, INDICES, (0, 77, 2, 1)), "out of bounds"),
    "such an index in a struct": (
        "x.arrow", _absurd(pa.StructArray.from_arrays([WORDS], ["x"]), INDICES, (0, 1, -5, 1)), "out of bounds"),
    "such an index in a list": (
        "x.arrow",
        _absurd(pa.ListArray.from_arrays(pa.array([0, 4], pa.int32()), WORDS), INDICES, (0, 1, 2, 2**31 - 1)),
        "out of bounds"),
}  # fmt: skip


@pytest.mark.parametrize("what", FILES)
def test_a_file_that_cannot_be_read_is_told_and_not_accepted(idle: Mill, what: str) -> None:
    name, content, said = FILES[what]
    path = idle.write(name, content)

    assert_refused(idle, submit(idle, path), path, said)


#: ``--format`` that contradicts the content of a file of the usual name.
FORMATS = {
    "csv": "looks like JSON", "parquet": "another format", "arrow": "another format", "jsonl.gz": "not compressed",
    "json.zst": "not compressed", "tsv": "looks like JSON", "jsnol": "did you mean 'jsonl'?",
    "parket": "did you mean 'parquet'?", "csv.bz2": "is not known", "jsonl.gz.zst": "is not known",
}  # fmt: skip


@pytest.mark.parametrize("given", FORMATS)
def test_a_format_that_the_file_has_not_is_told(idle: Mill, given: str) -> None:
    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD), "--format", given), FORMATS[given])


def test_gz_files_that_were_put_together_are_read_to_their_end(idle: Mill) -> None:
    path = idle.write("good.jsonl.gz", GZ + GZ)

    assert idle.call("check", path, "--json").ok().json["rows"] == 2000
