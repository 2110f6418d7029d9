"""A job's rows in one file: one module for each format, and what they share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from jobs.errors import InputError
from jobs.spec import JobFile
from jobs.store import Store
from producer.export.files import PACKINGS, beside, open_target

FORMATS = ("parquet", "jsonl", "csv", "tsv", "openai")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: rows, or of ``openai`` requests; those that failed are in ``errors``, if there are any."""

    rows: int
    failed: int = 0
    errors: Path | None = None


def format_of(target: str, given: str | None) -> str:
    """The format of an export: as given, else by the file's extension. Raises InputError."""
    path = Path(target)
    inner = Path(path.stem) if path.suffix.lower() in PACKINGS else path
    found = given or {"ndjson": "jsonl"}.get(name := inner.suffix.lower().removeprefix("."), name) or "parquet"
    if found not in FORMATS:
        raise InputError(f"--format {found!r}: use one of {', '.join(FORMATS)}")
    if found == "parquet" and inner is not path:
        raise InputError(f"{target}: parquet is compressed in itself: leave out {path.suffix}")
    return found


def extension(form: str) -> str:
    """What the name of a file in that format ends with."""
    return "jsonl" if form == "openai" else form


def export(
    store: Store,
    record: JobFile,
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    target: str,
    form: str,
    *,
    escape: bool = True,
) -> Exported:
    """Write rows of ``schema`` to ``target`` (``-`` is stdout). A file appears whole or not at all.

    ``escape`` is of ``write_delimited``; ``openai`` wants its own columns. Raises InputError where the target cannot
    be written.
    """
    path = Path(target)
    with contextlib.ExitStack() as files:
        if target == "-":
            if form == "parquet":
                raise InputError("parquet cannot be written to stdout; use --to FILE, or --format jsonl or csv")
            sys.stdout.flush()
            return _write(store, record, batches, schema, form, _Outputs(sys.stdout.buffer), escape)
        try:
            outputs = _Outputs(files.enter_context(open_target(path)), path, files)
            written = _write(store, record, batches, schema, form, outputs, escape)
            files.close()
            if form == "openai" and written.errors is None:
                # Of an earlier export to the same name: it would be taken for this one's.
                beside(path, "errors").unlink(missing_ok=True)
            return written
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror or error}") from error


class _Outputs:
    """The file of an export, and the one beside it for what failed, opened when it is first asked for."""

    def __init__(self, main: BinaryIO, path: Path | None = None, files: contextlib.ExitStack | None = None) -> None:
        self.main = main
        self.errors_path: Path | None = None
        self._path = path
        self._files = files
        self._errors: BinaryIO | None = None

    def errors(self) -> BinaryIO:
        if self._errors is None:
            if self._path is None or self._files is None:
                self._errors = self.main
            else:
                self.errors_path = beside(self._path, "errors")
                self._errors = self._files.enter_context(open_target(self.errors_path))
        return self._errors


def _write(
    store: Store,
    record: JobFile,
    batches: Iterator[pa.RecordBatch],
    schema: pa.Schema,
    form: str,
    outputs: _Outputs,
    escape: bool,
) -> Exported:
    # Imported late: a command that exports nothing, or in another format, need not wait for it.
    if form == "openai":
        from producer.export.openai import write_openai

        succeeded, failed = write_openai(store, record, batches, outputs.main, outputs.errors)
        return Exported(succeeded + failed, failed, outputs.errors_path)
    if form == "parquet":
        from producer.export.parquet import write_parquet

        return Exported(write_parquet(batches, schema, outputs.main))
    if form == "jsonl":
        from producer.export.jsonl import write_jsonl

        return Exported(write_jsonl(record, batches, outputs.main))
    from producer.export.delimited import write_delimited

    delimiter = "\t" if form == "tsv" else ","
    return Exported(write_delimited(batches, schema, outputs.main, delimiter=delimiter, escape=escape))
