"""``report``: one page, or one JSON document, about what became of a job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import EPILOG_NEWLINES, json_out
from jobs.errors import InputError
from producer.cli.flags import JobArgument, JsonFlag, PlaceFlags, with_flags
from producer.cli.jobs import opened
from producer.cli.results import check_folder

#: Bytes at the begin of a page that name what made it.
_HEAD = 1_024


def add_commands(app: typer.Typer) -> None:
    examples = (
        "Examples: promptmill report job-0123456789abcdef",
        "promptmill report job-0123456789abcdef --out - > page.html",
        "promptmill report job-0123456789abcdef --json",
    )
    app.command("report", epilog=EPILOG_NEWLINES.join(examples))(report_command)


@with_flags(place=PlaceFlags)
def report_command(
    job: JobArgument,
    place: PlaceFlags,
    out: Annotated[
        str | None,
        typer.Option("--out", metavar="FILE", help="Where the page goes; default JOB.html here, - is stdout."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """One HTML page about a job: throughput, lengths, failures, workers, settings. It may still run.

    A page that report made before is replaced; any other file is left alone.
    """
    # Imported late: other commands start quicker without it.
    from producer.report import build_report, render_page

    if as_json and out is not None:
        raise InputError("--json and --out exclude each other: --json prints the figures instead of a page")
    target = None if as_json or out == "-" else _target(out, job)
    with opened(place, job) as connection:
        report = build_report(connection, job)
    if as_json:
        json_out(report.to_json())
        return
    page = render_page(report).encode()
    if target is None:
        sys.stdout.buffer.write(page)  # UTF-8, as the page says, whatever the terminal's encoding is
    else:
        _write(target, page)
        sys.stdout.write(f"{target}\n")


def _target(out: str | None, job: str) -> Path:
    """The file to write, found fit before the work. Raises InputError."""
    from producer.report.page import GENERATOR

    path = Path(out or f"{job}.html")
    if path.is_dir():
        path /= f"{job}.html"
    check_folder(f"--out {path}", path)
    try:
        with path.open("rb") as file:
            ours = f'content="{GENERATOR}"'.encode() in file.read(_HEAD)
    except FileNotFoundError:
        return path
    except OSError as error:
        raise InputError(f"--out {path} cannot be read: {error.strerror or error}") from error
    if not ours:
        raise InputError(f"--out {path} is there, and no page of `promptmill report`: name another file, or remove it")
    return path


def _write(path: Path, page: bytes) -> None:
    """The whole page or nothing. Raises InputError."""
    from producer.export.files import whole_file

    try:
        with whole_file(path) as file:
            file.write(page)
    except OSError as error:
        raise InputError(f"--out {path} cannot be written: {error.strerror or error}") from error
