"""Waiting for a job: polling, and upkeep meanwhile. What is shown of it is in display.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console

from jobs.errors import LayoutError, UnavailableError
from jobs.spec import Status
from jobs.status import JobStatus
from producer.connection import Connection
from producer.display import LineDisplay, LiveDisplay
from producer.status import job_status
from producer.tend import tend

#: Seconds between two looks at the job.
POLL_S = 0.5


class Display(Protocol):
    """Shows a job's progress; a context manager."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def show(self, status: JobStatus) -> None: ...


def statuses(connection: Connection, job: str, supervise: Callable[[], None] = lambda: None) -> Iterator[JobStatus]:
    """The status of ``job`` every POLL_S seconds until it has ended or paused itself, upkeep done between.

    ``supervise`` is called each time. An outage of Redis is waited out, and for ``lease_s`` after it there is no
    upkeep: workers could not extend their leases either, and are given the time to. Raises UnknownJobError and
    LayoutError.
    """
    next_upkeep = 0.0
    while True:
        supervise()
        try:
            status = job_status(connection, job)
            yield status
            if status.status.ended or (status.status is Status.PAUSED and status.reason):
                return
            if time.monotonic() >= next_upkeep:
                next_upkeep = time.monotonic() + connection.settings.sweep_s
                tend(connection, job)
        except LayoutError:
            raise  # no outage: it does not pass
        except UnavailableError as error:
            sys.stderr.write(f"waiting: {error}\n")
            next_upkeep = time.monotonic() + connection.settings.lease_s
            time.sleep(2.0)
        time.sleep(POLL_S)


def watch(
    connection: Connection, job: str, display: Display, supervise: Callable[[], None] = lambda: None
) -> JobStatus:
    """Show the progress of ``job`` until it has ended; its last status."""
    status = job_status(connection, job)
    with display:
        for status in statuses(connection, job, supervise):
            display.show(status)
    return status


def make_display(stream: TextIO | None = None) -> Display:
    """A live display on a terminal that can move its cursor, a line now and then elsewhere."""
    stream = stream or sys.stderr
    console = Console(file=stream)
    return LiveDisplay(console) if stream.isatty() and not console.is_dumb_terminal else LineDisplay(stream)
