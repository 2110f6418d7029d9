"""The Python API in notebooks and interpreters: a progress bar in the cell, and Ctrl-C that ends in one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from types import TracebackType
from typing import Any

from jobs.console import EXIT_INTERRUPTED
from jobs.spec import Status
from jobs.status import JobStatus


class Interrupted(KeyboardInterrupt):
    """Raised by Ctrl-C while a job is submitted or waited for; the message says what becomes of it.

    Notebooks, the interpreter and programs that it ends show the message alone, without a traceback.
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it."""
        return [f"interrupted: {self}"]


@contextmanager
def interruptible(what_now: str) -> Iterator[None]:
    """Ctrl-C within becomes Interrupted, with ``what_now`` for people."""
    try:
        yield
    except KeyboardInterrupt:
        if sys.excepthook is sys.__excepthook__:
            sys.excepthook = _one_line
        raise Interrupted(what_now) from None


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own way to end with an error, but for Interrupted."""
    if isinstance(error, Interrupted):
        sys.stderr.write(f"interrupted: {error}\n")
        if not hasattr(sys, "ps1"):
            # A program ends, as after any Ctrl-C; to Python itself only a plain KeyboardInterrupt is one.
            raise SystemExit(EXIT_INTERRUPTED)
    else:
        sys.__excepthook__(kind, error, trace)


def notebook_display() -> NotebookDisplay | None:
    """A display for the notebook that this runs in; None elsewhere."""
    # Not imported: where it is not there yet, this is no notebook.
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return NotebookDisplay() if getattr(shell, "kernel", None) is not None else None


class NotebookDisplay:
    """A progress bar below the cell, drawn anew in its place. Needs no widgets: any front end shows it."""

    def __init__(self) -> None:
        self._handle: Any = None

    def __enter__(self) -> NotebookDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, status: JobStatus) -> None:
        from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

        shown = {"text/html": progress_html(status), "text/plain": progress_text(status)}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)


def progress_html(status: JobStatus) -> str:
    done, total = status.rows.ended + status.running.rows, max(1, status.rows.total)
    bar = f'<progress value="{min(done, total)}" max="{total}" style="width: 20em"></progress>'
    return f"<div>{bar} {escape(progress_text(status))}</div>"


def progress_text(status: JobStatus) -> str:
    """The figures of a job in one line."""
    done = min(status.rows.total, status.rows.ended + status.running.rows)
    words = [status.id, f"{done:,}/{status.rows.total:,} rows"]
    if status.status is not Status.IN_PROGRESS:
        words.append(status.status.value)
    elif not status.workers:
        words.append(f"waiting for a worker to load {status.model}")
    else:
        words.append(f"{status.rate.rows_per_s:,.1f} rows/s, {status.rate.tokens_per_s:,.0f} tokens/s")
        if status.eta_s is not None:
            words.append(f"{status.eta_s:,.0f} s to go")
    if status.rows.failed:
        words.append(f"{status.rows.failed:,} failed")
    return " · ".join([*words, *filter(None, [status.reason])])
