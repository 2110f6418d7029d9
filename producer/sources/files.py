"""From what the command line names as SOURCE to a source."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pyarrow as pa

from jobs.errors import InputError
from producer.sources.base import Found, Source, grouped
from producer.sources.delimited import DelimitedReader
from producer.sources.formats import ARROW_KINDS, Compression, Format, Kind, format_of
from producer.sources.json_array import read_json
from producer.sources.jsonl import read_jsonl
from producer.sources.local import local_places
from producer.sources.openai import is_request, read_requests
from producer.sources.opening import opened
from producer.sources.places import Place
from producer.sources.text import read_text

Reader = Callable[[BinaryIO, str], Iterator[Found]]
Files = list[tuple[Place, Compression | None]]


def open_source(source: str, *, format: str | None = None, stdin: BinaryIO | None = None) -> Source:
    """Opens a path, a glob, a folder, a URI of an object store or ``-`` (stdin), and looks at its first rows.

    ``format`` overrules the extension: one of KINDS, with ``.gz`` or ``.zst`` behind it where it is compressed; stdin
    without one is jsonl. Raises InputError where there is no such file or it cannot be read, SourceError where it
    holds no rows or is of another format, UnavailableError where an object store cannot be reached.
    """
    places = _find_places(source, stdin)
    given = format or ("jsonl" if source == "-" else None)
    formats = [format_of(place.name, given) for place in places]
    kind = _only_kind(source, formats)
    files: Files = [(place, found.compression) for place, found in zip(places, formats, strict=True)]
    name = "stdin" if source == "-" else source
    if kind in ARROW_KINDS:
        # Imported late: the readers of Parquet take a while, and most sources are text.
        from producer.sources.arrow import file_source

        return file_source(name, files, kind)
    opened_source = _text_source(name, files, kind)
    first = opened_source.first_row()
    if kind in ("jsonl", "json") and first is not None and is_request(first.values):
        return _as_requests(opened_source, first.values["body"])
    return opened_source


def _find_places(source: str, stdin: BinaryIO | None) -> list[Place]:
    """The files that ``source`` means, in the order in which they are read.

    Raises InputError where there are none or one cannot be read, UnavailableError where an object store cannot be
    reached.
    """
    if source == "-":
        if stdin is None and sys.stdin is None:
            raise InputError("stdin is closed: pipe rows into it, or name a file")
        stream = stdin or sys.stdin.buffer
        return [Place("stdin", lambda: stream, rereadable=False)]
    if "://" in source and not source.startswith("file://"):
        # Imported late: few sources are remote.
        from producer.sources.remote import remote_places

        return remote_places(source)
    path = source.removeprefix("file://")
    if not path:
        raise InputError(f"{source}: names no file")
    return local_places(path)


def _only_kind(source: str, formats: list[Format]) -> Kind:
    kinds = sorted({found.kind for found in formats})
    if len(kinds) > 1:
        raise InputError(f"{source}: the files have different formats ({', '.join(kinds)}): give them one at a time")
    return kinds[0]


def _text_source(name: str, files: Files, kind: Kind) -> Source:
    header: list[DelimitedReader] = []

    def read() -> Iterator[Found]:
        # Anew for each pass: a reader may carry state from file to file.
        reader = _reader(kind, header)
        for place, compression in files:
            with opened(place, compression) as stream:
                yield from reader(stream, place.name)

    source = Source(name, read, rereadable=all(place.rereadable for place, _ in files)).look_ahead()
    if header:
        source.columns = tuple(header[0].header or ())
    if kind in ("csv", "tsv", "txt"):
        source.types = dict.fromkeys(source.columns, pa.string())
    return source


def _reader(kind: Kind, header: list[DelimitedReader]) -> Reader:
    """What reads a file; ``header`` takes the reader of those that have one."""
    if kind == "jsonl":
        return read_jsonl
    if kind == "json":
        return lambda stream, file: grouped(read_json(stream, file))
    if kind == "txt":
        return lambda stream, file: grouped(read_text(stream, file))
    reader = DelimitedReader("," if kind == "csv" else "\t")
    header[:] = [reader]
    return lambda stream, file: grouped(reader(stream, file))


def _as_requests(source: Source, body: object) -> Source:
    source.notes.append("rows are OpenAI batch requests; they keep no columns of their own but custom_id")
    if isinstance(body, dict) and "model" in body:
        source.notes.append(f"the requests' own model ({body['model']!r} in the first) is ignored")
    requests = Source(
        source.name,
        lambda: grouped(read_requests(source)),
        rereadable=source.rereadable,
        openai=True,
        notes=source.notes,
    )
    return requests.look_ahead()
