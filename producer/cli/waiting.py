"""Waiting for a job at the command line, and what its end means for the exit code."""

from __future__ import annotations

from collections.abc import Callable

import typer

from jobs.console import EXIT_INTERRUPTED
from jobs.spec import Status
from jobs.status import JobStatus
from producer.cli.text import say
from producer.connection import Connection
from producer.display import codes_text
from producer.watch import make_display, watch


def wait_for(
    connection: Connection, job: str, supervise: Callable[[], None] = lambda: None, *, resume: str | None = None
) -> JobStatus:
    """Watch ``job`` until it has ended. Ctrl-C leaves with 130, the job going on, and says how to come back."""
    try:
        return watch(connection, job, make_display(), supervise)
    except KeyboardInterrupt:
        way_back = resume or f"the job goes on, `promptmill watch {job}` shows it, `promptmill cancel {job}` ends it"
        say(f"interrupted: {way_back}")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def finish(status: JobStatus, allow_failed: bool) -> None:
    """Leave with 1 where the job did not end completed, or has failed rows that are not allowed."""
    if status.status is Status.PAUSED:
        say(
            f"job {status.id} has paused itself: {status.reason}; `promptmill resume {status.id}` goes on, "
            f"`promptmill cancel {status.id}` ends it"
        )
        raise typer.Exit(1)
    if status.status is Status.FAILED:
        say(f"job {status.id} failed: {status.reason}; once that is mended, `promptmill recover {status.id}` goes on")
        raise typer.Exit(1)
    if status.status is not Status.COMPLETED:
        say(f"job {status.id} ended {status.status}" + (f": {status.reason}" if status.reason else ""))
        raise typer.Exit(1)
    if status.rows.failed and not allow_failed:
        codes = codes_text(status.errors)
        say(f"job {status.id} completed with {status.rows.failed:,} failed rows ({codes}); --allow-failed accepts them")
        raise typer.Exit(1)
