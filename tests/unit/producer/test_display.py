"""What a watcher sees of a job, at several widths."""

from __future__ import annotations

import io
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from jobs.spec import Status, now
from jobs.status import BatchCounts, JobStatus, RowCounts, Running, ServingWorker, TokenCounts
from producer.display import LineDisplay, LiveDisplay, describe, frame
from producer.rates import History, RateMeter, sparkline
from producer.watch import make_display

WIDTHS = (60, 80, 160)
NOW = now()
GPU = ServingWorker(id="gpu-1-4711-37964a", device="cuda:0")


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the drawing takes."""
    monkeypatch.setattr("producer.display.now", lambda: NOW)


def status(kind: Status = Status.IN_PROGRESS, **changes: Any) -> JobStatus:
    rows = RowCounts(total=10_000, completed=2_200, failed=34)
    given: dict[str, Any] = {
        "id": "job-74895a6814de3860", "status": kind, "model": "tiny", "labels": {}, "priority": 0,
        "created_at": NOW - timedelta(seconds=90), "started_at": NOW - timedelta(seconds=84), "rows": rows,
        "batches": BatchCounts(total=40, done=8, running=2), "tokens": TokenCounts(prompt=9, completion=70_000),
        "running": Running(rows=16, tokens=500), "workers": 1, "serving": (GPU,),
        "errors": {"prompt_too_long": 30, "numeric_error": 4}, "store": "memory://",
    }  # fmt: skip
    return JobStatus(**{**given, **changes})


def history(seconds: int = 300) -> History:
    """100 tokens/s, but none in the middle third."""
    found, tokens = History(), 0
    for second in range(seconds + 1):
        found.add(float(second), tokens)
        tokens += 0 if seconds // 3 <= second < 2 * seconds // 3 else 100
    return found


def drawn(shown: JobStatus, width: int, seen: History | None = None) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(frame(shown, (12.34, 1_756.4), seen or history()))
    return [line.rstrip() for line in console.export_text().splitlines()]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_figures_are_there_at_every_width_and_no_line_is_wider(width: int) -> None:
    lines = drawn(status(), width)
    text = " ".join(" ".join(lines).split())

    assert max(map(len, lines)) <= width
    assert lines[0] == "job-74895a6814de3860  in progress"
    for figure in ("2,250/10,000 22.5 %", "12.3 rows/s · 1,756 tokens/s · ETA 10:28", "01:24 elapsed",
                   "peak 100/s", "gpu-1-4711-37964a (cuda:0)",
                   "34: prompt_too_long 30, numeric_error 4"):  # fmt: skip
        assert figure in text, figure


def test_a_figure_is_never_broken_between_lines() -> None:
    lines = drawn(status(), 40)

    for figure in ("1,756 tokens/s", "ETA 10:28", "01:24 elapsed", "numeric_error 4"):
        assert any(figure in line for line in lines), figure


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        (status(workers=0, serving=()), "waiting for a worker to load tiny"),
        (status(workers=0, serving=(), reason="begun with weights 1234"), "tiny: begun with weights 1234"),
        (status(batches=BatchCounts(total=40)), "waiting for its turn"),
        (status(Status.PAUSED), "`promptmill resume job-74895a6814de3860` goes on"),
        (status(Status.PAUSED, reason="9 of 10 rows failed"), "paused: 9 of 10 rows failed"),
        (status(Status.CANCELLING), "rows in hand are stopped"),
        (status(Status.FINALIZING), "the parts are merged into the dataset"),
    ],
)
def test_a_job_that_stands_still_says_what_it_waits_for_and_shows_no_speed(shown: JobStatus, said: str) -> None:
    text = " ".join(" ".join(drawn(shown, 80)).split())

    assert said in text
    assert said in describe(shown, 12.0, 99.0)
    assert "rows/s" not in text + describe(shown, 12.0, 99.0)


def test_what_is_not_done_does_not_read_as_all() -> None:
    nearly = status(rows=RowCounts(total=100_000, completed=99_999), running=Running())

    assert "99.9 %" in " ".join(drawn(nearly, 80))


def test_workers_are_named_while_they_are_few() -> None:
    many = tuple(ServingWorker(id=f"gpu-{i}", device="cuda:0") for i in range(8))

    assert "gpu-2 (cuda:0), gpu-3 (cuda:0)" in " ".join(drawn(status(workers=4, serving=many[:4]), 160))
    assert "workers  1,250" in drawn(status(workers=1_250, serving=many), 80)


def test_the_sparkline_shows_the_whole_watched_time_and_its_gap() -> None:
    line = next(line for line in drawn(status(), 80) if line.startswith("tokens"))
    blocks = line.removeprefix("tokens   ").split("  peak")[0]
    third = len(blocks) // 3

    assert len(blocks) > 40
    assert set(blocks[: third - 1]) == set(blocks[-third + 1 :]) == {"█"}
    assert set(blocks[third + 2 : 2 * third - 2]) == {" "}


def test_a_sparkline_scales_to_its_greatest_value() -> None:
    assert sparkline([0, 1, 2, 4, 8]) == " ▂▃▅█"
    assert sparkline([0, 8], ascii_only=True) == " #"
    assert sparkline([]) == sparkline([0.0]).strip() == ""


def test_a_history_of_weeks_stays_small_and_exact() -> None:
    found = History()
    for look in range(50_000):
        found.add(look * 0.5, look * 10)

    assert len(found._seen) <= 2_048
    assert found.rates(100) == pytest.approx([20.0] * 100)


def test_a_worker_that_dies_makes_no_negative_rate_and_counts_nothing_twice() -> None:
    found = History()
    for second, tokens in enumerate([0, 100, 40, 100, 200]):
        found.add(float(second), tokens)

    assert found.rates(4) == [100.0, 0.0, 0.0, 100.0]
    meter = RateMeter()
    meter.measure(status(), 0.0)
    assert meter.measure(status(running=Running()), 5.0) == (0.0, 0.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_dumb_terminal_and_a_pipe_get_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(make_display(Terminal()), LiveDisplay)
    assert isinstance(make_display(io.StringIO()), LineDisplay)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_display(Terminal()), LineDisplay)


@pytest.mark.parametrize("no_colour", [False, True])
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, no_colour: bool) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_colour:
        monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    with make_display(terminal) as display:
        display.show(status())

    assert ("\x1b[1;36m" in terminal.getvalue()) is not no_colour


def test_a_terminal_made_narrower_is_cleared_of_the_lines_that_it_broke(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal = Terminal()
    console = Console(file=terminal, width=100)
    with LiveDisplay(console) as display:
        display.show(status())
        display.show(status())
        steady = terminal.getvalue().count("\x1b[1A")
        terminal.truncate(0)
        console.width = 50
        display.show(status())
        narrowed = terminal.getvalue().count("\x1b[1A")

    # A frame of six lines; all but the title were as wide as the terminal, and are two lines now.
    assert steady == 5
    assert narrowed == 5 + 5


def test_lines_are_quiet_when_nothing_changes() -> None:
    out = io.StringIO()
    with LineDisplay(out) as display:
        for _ in range(3):
            display.show(status(Status.PAUSED))
        display.show(status(Status.COMPLETED, ended_at=now()))

    assert [line.split("  ")[1].split(":")[0] for line in out.getvalue().splitlines()] == [
        "34 failed (numeric_error 4, prompt_too_long 30)",
        "completed",
    ]
