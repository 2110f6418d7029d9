"""Waiting for a job: polling, upkeep meanwhile, and the live display."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jobs.errors import UnavailableError
from jobs.spec import JobStatus, Status
from producer.connection import Connection
from producer.status import job_status
from producer.tend import tend

#: Seconds between two looks at the job.
POLL_S = 0.5
#: Seconds between two lines where the output is no terminal.
LINE_S = 10.0
#: Seconds that the displayed rate looks back.
RATE_WINDOW_S = 15.0


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
    upkeep: workers could not extend their leases either, and are given the time to. Raises UnknownJobError.
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
    """A live bar on a terminal, a line now and then elsewhere."""
    stream = stream or sys.stderr
    return LiveDisplay(stream) if stream.isatty() else LineDisplay(stream)


class RateMeter:
    """Rows/s and tokens/s over the last RATE_WINDOW_S seconds, batches in hand included."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def measure(self, status: JobStatus, at: float | None = None) -> tuple[float, float]:
        at = time.monotonic() if at is None else at
        rows = status.rows.ended + status.running.rows
        tokens = status.tokens.completion + status.running.tokens
        if not tokens:
            self._seen.clear()  # a model that is being loaded says nothing about the rate
        self._seen.append((at, rows, tokens))
        while len(self._seen) > 2 and at - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        start, rows_then, tokens_then = self._seen[0]
        elapsed = at - start
        if elapsed < POLL_S:
            return 0.0, 0.0
        # Rows in hand are lost from the count when their worker dies: the rate never shows below zero.
        return max(0.0, (rows - rows_then) / elapsed), max(0.0, (tokens - tokens_then) / elapsed)


def describe(status: JobStatus, rows_per_s: float, tokens_per_s: float) -> str:
    """The figures of a job in one line."""
    done = min(status.rows.total, status.rows.ended + status.running.rows)
    words = [f"{done:,}/{status.rows.total:,} rows", f"{rows_per_s:,.1f} rows/s", f"{tokens_per_s:,.0f} tok/s"]
    if status.status is Status.IN_PROGRESS and not status.workers:
        words = [words[0], f"waiting for a worker to load {status.model}"]
    elif status.status is Status.IN_PROGRESS:
        words.append(f"ETA {clock((status.rows.total - done) / rows_per_s)}" if rows_per_s > 0 else "ETA --:--")
    else:
        words.append(status.status.value)
    if status.rows.failed:
        codes = ", ".join(f"{code} {count}" for code, count in sorted(status.errors.items()))
        words.append(f"{status.rows.failed:,} failed ({codes})")
    if status.reason:
        words.append(status.reason)
    return "  ".join(words)


def clock(seconds: float) -> str:
    """Seconds as people read them: 09:52, 1:09:52."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


class LineDisplay:
    """One line when something changed, LINE_S apart at most often, for logs and pipes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._meter = RateMeter()
        self._next = 0.0
        self._last: str | None = None

    def __enter__(self) -> LineDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, status: JobStatus) -> None:
        line = f"{status.id}: {describe(status, *self._meter.measure(status))}"
        due = time.monotonic() >= self._next or status.status.ended
        if due and line != self._last:
            self._next, self._last = time.monotonic() + LINE_S, line
            self._stream.write(line + "\n")
            self._stream.flush()


class LiveDisplay:
    """A progress bar that is drawn anew in its place."""

    def __init__(self, stream: TextIO) -> None:
        self._meter = RateMeter()
        self._live = Live(console=Console(file=stream), refresh_per_second=4, transient=False)

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, status: JobStatus) -> None:
        done = min(status.rows.total, status.rows.ended + status.running.rows)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1, min_width=8)
        line.add_row(Text(status.id, style="bold"), ProgressBar(total=max(1, status.rows.total), completed=done))
        grid = Table.grid(expand=True)
        grid.add_row(line)
        grid.add_row(Text(describe(status, *self._meter.measure(status)), overflow="fold"))
        self._live.update(grid)
