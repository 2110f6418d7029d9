"""Which files a SOURCE means, and which format they have."""

from __future__ import annotations

import glob
import gzip
import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from jobs.errors import InputError, Problem, SourceError
from producer.sources.base import Item, Source
from producer.sources.delimited import DelimitedReader
from producer.sources.jsonl import read_jsonl
from producer.sources.lines import read_lines
from producer.sources.openai import is_request, read_requests
from producer.sources.text import read_text

Reader = Callable[[Iterable[tuple[int, bytes | None]], str], Iterator[Item]]


@dataclass(frozen=True, slots=True)
class _Format:
    #: Makes the reader of one pass over a source: it may carry state from file to file.
    reader: Callable[[], Reader]
    typed: bool


_FORMATS = {
    "jsonl": _Format(lambda: read_jsonl, typed=False),
    "csv": _Format(lambda: DelimitedReader(","), typed=True),
    "tsv": _Format(lambda: DelimitedReader("\t"), typed=True),
    "txt": _Format(lambda: read_text, typed=True),
}
_SAME = {"ndjson": "jsonl"}

#: Known formats that this version does not read, and what to do about it.
_NOT_YET = {
    "parquet": "convert it to .jsonl, for example with `duckdb -c \"COPY (FROM '{file}') TO 'rows.jsonl'\"`",
    "arrow": "convert it to .jsonl, for example with polars.read_ipc(...).write_ndjson(...)",
    "feather": "convert it to .jsonl, for example with polars.read_ipc(...).write_ndjson(...)",
    "json": "convert it to one object a line, for example with `jq -c '.[]' {file} > rows.jsonl`",
    "zst": "decompress it with `zstd -d`, or compress it with gzip",
    "xlsx": "export it as .csv",
}
_READ_BLOCK = 1 << 20


def open_source(source: str, *, format: str | None = None, stdin: BinaryIO | None = None) -> Source:
    """Opens a path, a glob or ``-`` (stdin) and looks at its first rows.

    ``format`` overrules the extension: jsonl (ndjson), csv, tsv or txt, each also with ``.gz`` behind it;
    stdin without one is jsonl. Raises InputError where there is no such file or it cannot be read, and
    SourceError where it holds no rows or is not text.
    """
    if source == "-":
        name, _ = _format_of("stdin.jsonl", format)
        stream = stdin or sys.stdin.buffer
        return _open("stdin", name, lambda: iter([("stdin", stream)]), rereadable=False)
    paths = _paths(source)
    formats = {_format_of(path, format) for path in paths}
    if len({name for name, _ in formats}) > 1:
        kinds = ", ".join(sorted(name for name, _ in formats))
        raise InputError(f"{source}: the files have different formats ({kinds}): give them one at a time")
    for path in paths:
        _check_readable(path)
    (name, _) = next(iter(formats))
    return _open(source, name, lambda: _streams(paths, format), rereadable=all(map(os.path.isfile, paths)))


def _open(name: str, format: str, streams: Callable[[], Iterator[tuple[str, BinaryIO]]], *, rereadable: bool) -> Source:
    kind = _FORMATS[format]
    reader = kind.reader()

    def read() -> Iterator[Item]:
        nonlocal reader
        reader = kind.reader()
        for file, stream in streams():
            yield from reader(read_lines(stream, file), file)

    source = Source(name, read, rereadable=rereadable).look_ahead()
    if isinstance(reader, DelimitedReader):
        source.columns = tuple(reader.header or ())
    if kind.typed:
        source.types = dict.fromkeys(source.columns, pa.string())
    first = source.first_row()
    if format == "jsonl" and first is not None and is_request(first.values):
        return _as_requests(source, first.values["body"])
    return source


def _as_requests(source: Source, body: object) -> Source:
    source.notes.append("rows are OpenAI batch requests; they keep no columns of their own but custom_id")
    if isinstance(body, dict) and "model" in body:
        source.notes.append(f"the requests' own model ({body['model']!r} in the first) is ignored")
    requests = Source(
        source.name,
        lambda: read_requests(source),
        rereadable=source.rereadable,
        openai=True,
        notes=source.notes,
    )
    return requests.look_ahead()


def _paths(source: str) -> list[str]:
    if "://" in source:
        raise InputError(f"{source}: this version reads local files only: download it, or pipe it in with '-'")
    if os.path.exists(source) or not glob.has_magic(source):
        return [source]
    paths = sorted(path for path in glob.glob(source, recursive=True) if not os.path.isdir(path))
    if not paths:
        raise InputError(f"{source}: no file matches")
    return paths


def _format_of(path: str, format: str | None) -> tuple[str, bool]:
    """The format's name and whether the file is compressed, from ``--format`` or the extension."""
    shown = format or Path(path).name
    parts = ["", *shown.lower().split(".")] if format else shown.lower().split(".")
    compressed = len(parts) > 1 and parts[-1] == "gz"
    last = parts[-1 - compressed] if len(parts) > 1 + compressed else ""
    name = _SAME.get(last, last)
    if name in _FORMATS:
        return name, compressed or path.lower().endswith(".gz")
    if name in _NOT_YET:
        todo = _NOT_YET[name].format(file=path)
        raise InputError(f"{path}: this version does not read .{name} yet: {todo}")
    if format:
        raise InputError(f"format {format!r} is not known: use one of {', '.join(_FORMATS)}")
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: name a file in it, or a glob such as '{path.rstrip('/')}/*.jsonl'")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file")
    raise InputError(f"{path}: the name does not tell the format: add --format {'|'.join(_FORMATS)}")


def _check_readable(path: str) -> None:
    """Raises InputError, in plain words, for what cannot be opened; before anything of the source is read."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory: name a file in it, or a glob such as '{path.rstrip('/')}/*.jsonl'")
    try:
        # What is no file, such as a pipe, is opened once only, by the reader.
        if stat.S_ISREG(os.stat(path).st_mode):
            open(path, "rb").close()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path!r}: cannot be a path: {error}") from error


def _streams(paths: list[str], format: str | None) -> Iterator[tuple[str, BinaryIO]]:
    for path in paths:
        try:
            with _opened(path, compressed=_format_of(path, format)[1]) as stream:
                yield path, stream
        except OSError as error:
            raise SourceError([Problem(path, None, f"cannot be read: {error.strerror or error}")]) from error


@contextmanager
def _opened(path: str, *, compressed: bool) -> Iterator[BinaryIO]:
    with open(path, "rb", buffering=_READ_BLOCK) as stream:
        if compressed:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield cast(BinaryIO, io.BufferedReader(unpacked, _READ_BLOCK))
        else:
            yield stream
