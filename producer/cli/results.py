"""``results``: where a job's dataset is, or its rows in one file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import json_out
from jobs.errors import InputError
from jobs.records import read_job
from producer.cli.flags import JobArgument, JsonFlag, PlaceFlags, with_flags
from producer.cli.jobs import opened
from producer.cli.text import say
from producer.results import dataset_location, export, format_of, head, read_results


def add_commands(app: typer.Typer) -> None:
    app.command("results", epilog="Example: promptmill results job-0123456789abcdef --to copy.csv")(results_command)


@with_flags(place=PlaceFlags)
def results_command(
    job: JobArgument,
    place: PlaceFlags,
    to: Annotated[str | None, typer.Option(metavar="FILE_OR_DIR", help="Write the rows here; - is stdout.")] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="parquet, jsonl, csv, openai; default: by extension."),
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Finished batches of a job that still runs.")] = False,
    rows: Annotated[int | None, typer.Option("--head", metavar="N", min=1, help="The first rows only.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Where the dataset of JOB is; with --to or --head, its rows."""
    with opened(place, job) as connection:
        store = connection.store
        record = read_job(store, job)
        if to is None and rows is None and form is None and not partial:
            location = dataset_location(store, job)
            if as_json:
                json_out({"id": job, "results": location})
            else:
                sys.stdout.write(location + "\n")
            return
        batches = read_results(store, job, partial=partial)
        if rows is not None:
            batches = head(batches, rows)
        if to is None or to == "-":
            if as_json:
                _check_json(form)
                json_out([row for batch in batches for row in batch.to_pylist()])
            else:
                export(record, batches, "-", format_of("-", form or "jsonl"))
            return
        target = target_file(to, job, form)
        count = export(record, batches, str(target), format_of(str(target), form))
        if as_json:
            json_out({"id": job, "to": str(target), "rows": count})
        else:
            say(f"{count:,} rows written to {target}")


def target_file(to: str, job: str, form: str | None) -> Path:
    """The file that the rows of ``job`` go to: ``to`` itself, or one named for the job where that is a folder.

    A folder is one that is there, or is meant by a slash at the end and is then made. Raises InputError.
    """
    path = Path(to)
    if not to.endswith("/") and not path.is_dir():
        return path
    written = format_of(job, form or "parquet")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{to} cannot be made: {error.strerror or error}") from error
    return path / f"{job}.{'jsonl' if written == 'openai' else written}"


def _check_json(form: str | None) -> None:
    if form not in (None, "jsonl"):
        raise InputError(f"--json prints the rows as one JSON array: leave out --format {form}")
