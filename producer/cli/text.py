"""What commands print for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from jobs.errors import Problem
from jobs.job_file import Retry
from jobs.status import JobStatus
from producer.display import clock
from producer.numbers import counted


def say(text: str) -> None:
    """One line for people, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_table(table: Table) -> None:
    """A table on stdout, as wide as it needs where that is no terminal."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200)
    console.print(table)


def problems_text(problems: list[Problem], total: int) -> str:
    lines = [f"error: {problem}" for problem in problems]
    if total > len(problems):
        lines.append(f"... and {total - len(problems):,} more")
    return "\n".join(lines)


#: What ``head_text`` needs of a row.
HEAD_COLUMNS = ("row_index", "custom_id", "status", "error_code", "error_message", "text")


def head_text(batches: Iterator[pa.RecordBatch]) -> str:
    """A few result rows for people."""
    lines = []
    for batch in batches:
        for row in batch.to_pylist():
            name = row["custom_id"] if row["custom_id"] is not None else f"row {row['row_index']}"
            reason = row["error_message"] or row["error_code"] or "not generated"
            text = row["text"] if row["status"] == "ok" else f"[{row['status']}: {reason}]"
            lines.append(f"{name}: {text.strip()}")
    return "\n".join(lines) + "\n" if lines else ""


def status_text(status: JobStatus) -> str:
    """What ``status`` prints."""
    rows, batches = status.rows, status.batches
    pairs = [
        ("job", status.id),
        ("status", status.status.value + (f" ({status.reason})" if status.reason else "")),
        ("model", status.model),
        ("priority", f"{status.priority}"),
        ("rows", f"{rows.ended:,} of {rows.total:,} ended: {rows.completed:,} completed, {rows.failed:,} failed, "
                 f"{rows.cancelled:,} cancelled, {rows.expired:,} expired"),
        ("batches", f"{batches.done:,} of {batches.total:,} done, {batches.running:,} running"),
        ("workers", f"{status.workers:,}"),
        ("tokens", f"{status.tokens.prompt:,} in, {status.tokens.completion:,} out"),
        ("rate", f"{status.rate.rows_per_s:,.1f} rows/s, {status.rate.tokens_per_s:,.0f} tokens/s"),
    ]  # fmt: skip
    if status.running.rows:
        pairs.append(("in hand", f"{status.running.rows:,} rows, {status.running.tokens:,} tokens generated"))
    if status.eta_s is not None:
        pairs.append(("ETA", clock(round(status.eta_s))))
    pairs += [(f"error {code}", f"{count:,}") for code, count in sorted(status.errors.items())]
    if status.labels:
        pairs.append(("labels", labels_text(status.labels)))
    if status.retry:
        pairs.append(("retry of", retry_text(status.retry)))
    if status.deadline:
        pairs.append(("deadline", status.deadline.isoformat()))
    pairs.append(("store", status.store))
    if status.results:
        pairs.append(("results", status.results))
    width = max(len(name) for name, _ in pairs)
    return "".join(f"{name:<{width}}  {value}\n" for name, value in pairs)


def labels_text(labels: dict[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels.items())


def retry_text(retry: Retry) -> str:
    """The parent, and what became of its rows."""
    statuses = ", ".join("failed" if status == "error" else status for status in retry.statuses)
    line = "" if retry.root == retry.parent else f", the first of the line is {retry.root}"
    again = counted(retry.retried, "row")
    return f"{retry.parent}{line}: generates {again} again ({statuses}), {retry.carried.rows:,} carried over"


@contextmanager
def staging() -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how many rows were staged so far."""
    shown = False

    def show(rows: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = True
            sys.stderr.write(f"\rstaged {rows:,} rows")
            sys.stderr.flush()

    try:
        yield show
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
