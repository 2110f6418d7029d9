"""What a watcher sees of a job: a live display on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import ControlType, Segment
from rich.table import Table
from rich.text import Text

from jobs.spec import Status, now
from jobs.status import JobStatus
from producer.rates import History, RateMeter, rows_done, sparkline

#: Seconds between two lines where the output is no terminal.
LINE_S = 10.0
#: Columns beyond which a line is no easier to read.
_WIDEST = 120
#: Workers that are shown by name.
_NAMED = 4

_COLOURS = {
    Status.IN_PROGRESS: "cyan", Status.FINALIZING: "cyan", Status.COMPLETED: "green", Status.PAUSED: "yellow",
    Status.CANCELLING: "yellow", Status.CANCELLED: "yellow", Status.EXPIRED: "yellow", Status.FAILED: "red",
}  # fmt: skip


def clock(seconds: float) -> str:
    """Seconds as people read them: 09:52, 1:09:52."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute:02}:{second:02}"


def codes_text(codes: dict[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in sorted(codes.items()))


def standing(status: JobStatus) -> str | None:
    """Why no rows are being generated, and what would change that; None while they are, and after the end."""
    match status.status:
        case Status.IN_PROGRESS if not status.workers:
            return f"waiting for a worker to load {status.model}" + (f": {status.reason}" if status.reason else "")
        case Status.IN_PROGRESS if not (status.batches.running or status.batches.done):
            return "waiting for its turn: no batch has begun yet"
        case Status.PAUSED:
            return f"paused: {status.reason or 'no more batches begin'}; `promptmill resume {status.id}` goes on"
        case Status.CANCELLING:
            return "cancelling: rows in hand are stopped, finished rows stay"
        case Status.FINALIZING:
            return "finalizing: the parts are merged into the dataset"
    return status.reason


def describe(status: JobStatus, rows_per_s: float, tokens_per_s: float) -> str:
    """The figures of a job in one line."""
    done, still = rows_done(status), standing(status)
    words = [f"{done:,}/{status.rows.total:,} rows"]
    if status.status.ended:
        words.append(status.status.value)
    elif not still:
        words += [f"{rows_per_s:,.1f} rows/s", f"{tokens_per_s:,.0f} tok/s", _eta(status, rows_per_s)]
    if status.rows.failed:
        words.append(f"{status.rows.failed:,} failed ({codes_text(status.errors)})")
    if still:
        words.append(still)
    return "  ".join(words)


def _eta(status: JobStatus, rows_per_s: float) -> str:
    return f"ETA {clock((status.rows.total - rows_done(status)) / rows_per_s)}" if rows_per_s > 0 else "ETA --:--"


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
        at = time.monotonic()
        line = f"{status.id}: {describe(status, *self._meter.measure(status, at))}"
        if (at >= self._next or status.status.ended) and line != self._last:
            self._next, self._last = at + LINE_S, line
            self._stream.write(line + "\n")
            self._stream.flush()


class LiveDisplay:
    """A few lines that are drawn anew in their place, as wide as the terminal is at the moment."""

    def __init__(self, console: Console) -> None:
        self._meter = RateMeter()
        self._history = History()
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        #: The width that the last frame was drawn for, and the cells of each of its lines.
        self._drawn: tuple[int, list[int]] = (0, [])

    def __enter__(self) -> LiveDisplay:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mend_wrapped_lines()
        self._live.__exit__(kind, error, trace)

    def show(self, status: JobStatus) -> None:
        at = time.monotonic()
        self._history.add(at, status.tokens.completion + status.running.tokens)
        shown = frame(status, self._meter.measure(status, at), self._history)
        self._mend_wrapped_lines()
        lines = self._console.render_lines(shown, pad=False)
        self._drawn = (self._console.width, [Segment.get_line_length(line) for line in lines])
        self._live.update(shown, refresh=True)

    def _mend_wrapped_lines(self) -> None:
        """Erase what rich does not know of: a terminal that was made narrower has broken lines of the last frame."""
        width, cells = self._drawn
        narrower = self._console.width
        if narrower < width:
            broken = sum(max(0, -(-length // narrower) - 1) for length in cells)
            up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)) * broken
            self._console.control(Control(ControlType.CARRIAGE_RETURN, *up))


def frame(status: JobStatus, rates: tuple[float, float], history: History) -> RenderableType:
    """All that the live display shows of a job at one moment."""
    title = Text.assemble(
        (status.id, "bold"), "  ", (status.status.value.replace("_", " "), f"bold {_COLOURS[status.status]}")
    )
    figures = Table.grid(padding=(0, 2))
    figures.add_column(no_wrap=True, min_width=len("workers"), style="dim")
    figures.add_column()
    for label, shown in _figures(status, rates, history):
        figures.add_row(label, shown)
    return _Narrow(Group(title, figures))


def _figures(status: JobStatus, rates: tuple[float, float], history: History) -> Iterator[tuple[str, RenderableType]]:
    yield "rows", _Progress(rows_done(status), status.rows.total)
    still = standing(status)
    if not status.status.ended:
        speed = [f"{rates[0]:,.1f} rows/s", f"{rates[1]:,.0f} tokens/s", _eta(status, rates[0])]
        yield "speed", _Flow([*([] if still else speed), f"{clock(_elapsed(status))} elapsed"], " · ")
    else:
        yield "time", Text(clock(_elapsed(status)))
    yield "tokens", _Sparkline(history)
    if status.workers:
        yield "workers", _Flow(_workers(status), ", ")
    if status.rows.failed:
        codes = [f"{code} {count:,}" for code, count in sorted(status.errors.items(), key=lambda item: -item[1])]
        first = f"{status.rows.failed:,}" + (f": {codes[0]}" if codes else "")
        yield "failed", _Flow([first, *codes[1:]], ", ", "red")
    if still:
        yield "", Text(still, "yellow", overflow="fold")


def _elapsed(status: JobStatus) -> float:
    """Seconds since the first claim, or since the submit where there was none, until now or the end."""
    begun = status.started_at or status.created_at
    return max(0.0, ((status.ended_at or now()) - begun).total_seconds())


def _workers(status: JobStatus) -> list[str]:
    """The number of workers, and who they are while they are few."""
    named = [f"{worker.id} ({worker.device})" for worker in status.serving]
    if status.workers <= _NAMED and named:
        return named if status.workers > 1 else named[:1]
    return [f"{status.workers:,}"]


class _Narrow:
    """``content``, in no more columns than are easily read."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self._content, options.update_width(min(options.max_width, _WIDEST)))


class _Progress:
    """A bar with the figures that it stands for."""

    def __init__(self, done: int, total: int) -> None:
        self._done, self._total = done, total

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Rounded down: what is not done does not read 100 %.
        share = self._done * 1000 // max(1, self._total) / 10
        figures = f"{self._done:,}/{self._total:,}  {share:.1f} %"
        row = Table.grid(padding=(0, 2))
        width = max(4, options.max_width - cell_len(figures) - 2)
        bar = ProgressBar(max(1, self._total), self._done, width=width, complete_style="cyan", finished_style="green")
        row.add_row(bar, Text(figures, no_wrap=True))
        yield row


class _Sparkline:
    """Tokens/s over the watched time, and the most there were."""

    def __init__(self, history: History) -> None:
        self._history = history

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - len("  peak 1,000,000/s")
        values = self._history.rates(max(8, room))
        most = f"peak {max(values):,.0f}/s" if values else "--"
        line = sparkline(values, ascii_only=options.ascii_only)
        yield Text.assemble((line, "cyan"), "  " if line else "", most, no_wrap=True, overflow="crop")


class _Flow:
    """Words that are kept whole, side by side for as long as the line lasts."""

    def __init__(self, words: Sequence[str], between: str, style: str = "") -> None:
        self._words, self._between, self._style = words, between, style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [self._words[0]]
        between = self._between.replace("·", "|") if options.ascii_only else self._between
        for word in self._words[1:]:
            longer = lines[-1] + between + word
            if cell_len(longer) <= options.max_width:
                lines[-1] = longer
            else:
                lines.append(word)
        yield Text("\n".join(lines), self._style, overflow="fold")
