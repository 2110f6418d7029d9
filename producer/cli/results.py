"""``results``: where a job's dataset is, or its rows in one file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer

from jobs.console import EPILOG_NEWLINES, json_out
from jobs.errors import InputError
from jobs.records import has_ended, read_job
from jobs.spec import JobFile
from jobs.store import Store
from producer.cli.flags import JobArgument, JsonFlag, PlaceFlags, with_flags
from producer.cli.jobs import opened
from producer.cli.text import say
from producer.export import FORMATS, Exported, export, extension, format_of
from producer.results import STATUSES, dataset_location, head, head_requests, read_results, selected_schema

_EPILOG = EPILOG_NEWLINES.join(
    [
        "Examples:",
        "promptmill results job-0123456789abcdef",
        "promptmill results job-0123456789abcdef --to copy.csv.gz --columns custom_id,text --status ok",
        "promptmill results job-0123456789abcdef --to out.jsonl --format openai  (and out.errors.jsonl)",
        "promptmill results job-0123456789abcdef --partial --head 20",
    ]
)


def add_commands(app: typer.Typer) -> None:
    app.command("results", epilog=_EPILOG)(results_command)


@with_flags(place=PlaceFlags)
def results_command(
    job: JobArgument,
    place: PlaceFlags,
    to: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_DIR", help="Write the rows here, also .gz or .zst; replaces; - is stdout."),
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORMAT", help=f"{', '.join(FORMATS)}; default: by extension.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Finished batches of a job that still runs.")] = False,
    rows: Annotated[
        int | None, typer.Option("--head", metavar="N", min=1, help="The first rows (openai: requests) only.")
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="A,B", help="These columns only, in this order.")] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help=f"Rows of one status only: {', '.join(STATUSES)}.")
    ] = None,
    no_escape: Annotated[
        bool, typer.Option("--no-escape", help="CSV: no apostrophe before what a spreadsheet takes for a formula.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Where the dataset of JOB is; with --to or --head, its rows in the order of the source."""
    with opened(place, job) as connection:
        store = connection.store
        if to is None and rows is None and form is None and columns is None and status is None and not partial:
            location = dataset_location(store, job)
            if as_json:
                json_out({"id": job, "results": location})
            else:
                sys.stdout.write(location + "\n")
            return
        target = "-" if to is None else to
        written = _format(target, form)
        query = _Query(store, job, written, columns=columns, status=status, partial=partial, rows=rows)
        if target == "-" and as_json:
            _print_rows(query, form)
            return
        path = target if target == "-" else str(target_file(target, job, form))
        done = export(store, query.record, query.batches(), query.schema, path, written, escape=not no_escape)
        if path != "-":
            _tell(query, done, path, as_json)


class _Query:
    """Which rows of which job, as asked for. Raises InputError, JobNotCompletedError."""

    def __init__(
        self,
        store: Store,
        job: str,
        form: str,
        columns: str | None,
        status: str | None,
        partial: bool,
        rows: int | None,
    ) -> None:
        if status is not None and status not in STATUSES:
            raise InputError(f"--status {status!r}: use one of {', '.join(STATUSES)}")
        self.openai = form == "openai"
        if self.openai and (columns is not None or status is not None):
            raise InputError("--format openai has whole requests: leave out --columns and --status")
        self.record: JobFile = read_job(store, job)
        self.total = self.record.rows if self.openai else self.record.result_rows
        #: Whether the job still runs: what was read is what is finished by now.
        self.running = partial and not has_ended(store, job)
        wanted = None if columns is None else tuple(name.strip() for name in columns.split(","))
        if self.openai:
            from producer.export.openai import COLUMNS

            wanted = COLUMNS
        self.schema = selected_schema(self.record, wanted)
        self._found = read_results(store, job, partial=partial, columns=wanted, status=status)
        self._rows = rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        if self._rows is None:
            return self._found
        return (head_requests if self.openai else head)(self._found, self._rows)


def _format(target: str, form: str | None) -> str:
    """The format that is written. Raises InputError."""
    if target == "-":
        return format_of("-", form or "jsonl")
    return format_of("parquet" if _is_folder(target) else target, form)


def _is_folder(to: str) -> bool:
    """A folder is one that is there, or is meant by a slash at the end and is then made."""
    return to.endswith("/") or Path(to).is_dir()


def target_file(to: str, job: str, form: str | None) -> Path:
    """The file that the rows of ``job`` go to: ``to`` itself, or one named for the job where that is a folder.

    Raises InputError.
    """
    path = Path(to)
    if not _is_folder(to):
        return path
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{to} cannot be made: {error.strerror or error}") from error
    return path / f"{job}.{extension(form or 'parquet')}"


def _print_rows(query: _Query, form: str | None) -> None:
    """The rows as one JSON array on stdout."""
    from producer.export.jsonl import json_rows

    if form not in (None, "jsonl"):
        raise InputError(f"--json prints the rows as one JSON array: leave out --format {form}")
    json_out(list(json_rows(query.record, query.batches())))


def _tell(query: _Query, done: Exported, path: str, as_json: bool) -> None:
    """Says what was written, and of how much."""
    if as_json:
        about: dict[str, Any] = {"id": query.record.id, "to": path, "rows": done.rows, "total": query.total}
        if query.openai:
            about |= {"failed": done.failed, "errors": done.errors and str(done.errors)}
        json_out(about)
        return
    rows = f"{done.rows - done.failed:,}"
    if query.running:
        rows += f" of {query.total:,}"
    text = f"{rows} {'requests' if query.openai else 'rows'} written to {path}"
    if done.errors is not None:
        text += f", {done.failed:,} that failed to {done.errors}"
    say(text + ("; the job still runs" if query.running else ""))
