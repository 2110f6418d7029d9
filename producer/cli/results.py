"""``results``: where a job's dataset is, or its rows in one file."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs.console import json_out
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
    to: Annotated[str | None, typer.Option(metavar="FILE", help="Write the rows here; - is stdout.")] = None,
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
        target = to or "-"
        written = format_of(target, form or ("jsonl" if target == "-" else None))
        batches = read_results(store, job, partial=partial)
        count = export(record, head(batches, rows) if rows else batches, target, written)
        if as_json and target != "-":
            json_out({"id": job, "to": target, "rows": count})
        elif target != "-":
            say(f"{count:,} rows written to {target}")
