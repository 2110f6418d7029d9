"""``results``: where a job's dataset is, or its rows in one file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.console import EPILOG_NEWLINES, json_out
from jobs.errors import InputError
from jobs.store import Store
from producer.cli.completion import complete_export
from producer.cli.flags import JobArgument, JsonFlag, PlaceFlags, with_flags
from producer.cli.jobs import opened
from producer.cli.text import say
from producer.export import FORMATS, Exported, Selected, Selection, export, extension, format_of
from producer.results import STATUSES, dataset_location

_EXAMPLES = (
    "Example: promptmill results job-0123456789abcdef --to copy.csv.gz --columns custom_id,text --status ok",
    "For OpenAI's package: promptmill results job-0123456789abcdef --to out.jsonl --format openai",
    "While it runs: promptmill results job-0123456789abcdef --partial --head 20",
)


def add_commands(app: typer.Typer) -> None:
    app.command("results", epilog=EPILOG_NEWLINES.join(_EXAMPLES))(results_command)


@with_flags(place=PlaceFlags)
def results_command(
    job: JobArgument,
    place: PlaceFlags,
    to: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_DIR", help="Write the rows here, also .gz or .zst; replaces; - is stdout."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help=f"{', '.join(FORMATS)}; default: by extension.",
            autocompletion=complete_export,
        ),
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
        wanted = None if columns is None else tuple(name.strip() for name in columns.split(","))
        selection, every = Selection(partial, wanted, status, rows), rows is None and status is None
        if to in (None, "-"):
            if as_json:
                _print_rows(store, job, form, selection)
            else:
                written = format_of("-", form or "jsonl")
                done = export(store, job, "-", written, selection, escape=not no_escape)
                if done.running:
                    say(f"job {job} still runs" + _finished(done, written, every))
            return
        target, written = target_file(to or "", job, form)
        done = export(store, job, str(target), written, selection, escape=not no_escape)
        _tell(job, target, written, done, as_json, every)


def check_folder(flag: str, path: Path) -> None:
    """Raises InputError where no file can be written beside ``path``."""
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{flag}: the folder {path.parent} is not there, or cannot be written")


def target_file(to: str, job: str, form: str | None) -> tuple[Path, str]:
    """The file that the rows of ``job`` go to, and its format: ``to`` itself, or one named for the job in a folder.

    A folder is one that is there, or is meant by a slash at the end and is then made. Raises InputError.
    """
    path = Path(to)
    if not to.endswith("/") and not path.is_dir():
        return path, format_of(to, form)
    written = format_of(job, form or "parquet")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{to} cannot be made: {error.strerror or error}") from error
    return path / f"{job}.{extension(written)}", written


def _print_rows(store: Store, job: str, form: str | None, selection: Selection) -> None:
    """The rows as one JSON array on stdout. Raises InputError."""
    from producer.export.jsonl import json_rows

    if form not in (None, "jsonl"):
        raise InputError(f"--json prints the rows as one JSON array: leave out --format {form}")
    found = Selected(store, job, "jsonl", selection)
    json_out(list(json_rows(found.record, found.batches)))


def _tell(job: str, target: Path, form: str, done: Exported, as_json: bool, every: bool) -> None:
    """Says what was written; ``every``: these are all rows that are finished."""
    if as_json:
        about: dict[str, Any] = {"id": job, "to": str(target), "rows": done.rows, "total": done.total}
        if form == "openai":
            about |= {"failed": done.failed, "errors": done.errors and str(done.errors)}
        json_out(about)
        return
    text = f"{done.rows - done.failed:,} {_kind(form)} written to {target}"
    if done.errors is not None:
        text += f", {done.failed:,} that failed to {done.errors}"
    if done.running:
        text += "; the job still runs" + _finished(done, form, every)
    say(text)


def _finished(done: Exported, form: str, every: bool) -> str:
    return f": {done.rows:,} of {done.total:,} {_kind(form)} are finished" if every else ""


def _kind(form: str) -> str:
    return "requests" if form == "openai" else "rows"
