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
from jobs.job_file import JobFile
from jobs.records import has_ended, read_job
from jobs.store import Store
from producer.export.files import PACKINGS, beside, open_target
from producer.results import head, head_requests, read_results, selected_schema

FORMATS = ("parquet", "jsonl", "csv", "tsv", "openai")


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: rows, or of ``openai`` requests, of a job that has ``total`` of them.

    ``running``: the job had not ended, and these are what it had finished. Of ``openai`` the requests that failed are
    in the file ``errors``, if there are any.
    """

    rows: int
    total: int
    running: bool = False
    failed: int = 0
    errors: Path | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows and columns of a job's results; ``partial`` as in ``read_results``, ``head`` the first rows only."""

    partial: bool = False
    columns: tuple[str, ...] | None = None
    status: str | None = None
    head: int | None = None


class Selected:
    """The rows of ``job`` that ``selection`` names, for an export to ``form``. Raises as ``read_results``."""

    def __init__(self, store: Store, job: str, form: str, selection: Selection) -> None:
        columns, first = selection.columns, head
        self.record: JobFile = read_job(store, job)
        self.total = self.record.result_rows
        if form == "openai":
            if columns is not None or selection.status is not None:
                raise InputError("--format openai has whole requests: leave out --columns and --status")
            from producer.export.openai import COLUMNS

            columns, first, self.total = COLUMNS, head_requests, self.record.rows
        self.running = selection.partial and not has_ended(store, job)
        self.schema = selected_schema(self.record, columns)
        found = read_results(store, job, partial=selection.partial, columns=columns, status=selection.status)
        self.batches: Iterator[pa.RecordBatch] = found if selection.head is None else first(found, selection.head)


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
    store: Store, job: str, target: str, form: str, selection: Selection | None = None, *, escape: bool = True
) -> Exported:
    """Write rows of ``job`` to ``target`` (``-`` is stdout). A file appears whole or not at all.

    ``escape`` is of ``write_delimited``. Raises InputError where the target cannot be written, else as
    ``read_results``.
    """
    if target == "-" and form == "parquet":
        raise InputError("parquet cannot be written to stdout; use --to FILE, or --format jsonl or csv")
    rows = Selected(store, job, form, selection or Selection())
    if target == "-":
        sys.stdout.flush()
        return _write(store, rows, form, _Outputs(sys.stdout.buffer), escape)
    path = Path(target)
    try:
        with contextlib.ExitStack() as files:
            # A pipe or device has no place beside it: what failed goes there too, as to stdout.
            target_file = None if path.exists() and not path.is_file() else path
            outputs = _Outputs(files.enter_context(open_target(path)), target_file, files)
            written = _write(store, rows, form, outputs, escape)
        if form == "openai" and written.errors is None and path.is_file():
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
        if self._path is None or self._files is None:
            return self.main
        if self._errors is None:
            self.errors_path = beside(self._path, "errors")
            self._errors = self._files.enter_context(open_target(self.errors_path))
        return self._errors


def _write(store: Store, rows: Selected, form: str, outputs: _Outputs, escape: bool) -> Exported:
    # Imported late: a command that exports nothing, or in another format, need not wait for it.
    failed = 0
    if form == "openai":
        from producer.export.openai import write_openai

        succeeded, failed = write_openai(store, rows.record, rows.batches, outputs.main, outputs.errors)
        count = succeeded + failed
    elif form == "parquet":
        from producer.export.parquet import write_parquet

        count = write_parquet(rows.batches, rows.schema, outputs.main)
    elif form == "jsonl":
        from producer.export.jsonl import write_jsonl

        count = write_jsonl(rows.record, rows.batches, outputs.main)
    else:
        from producer.export.delimited import write_delimited

        delimiter = "\t" if form == "tsv" else ","
        count = write_delimited(rows.batches, rows.schema, outputs.main, delimiter=delimiter, escape=escape)
    return Exported(count, rows.total, rows.running, failed, outputs.errors_path)
