"""The Python API in notebooks: a bar that is drawn anew in its place, and a Ctrl-C without a traceback."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from jobs.spec import Status
from jobs.status import BatchCounts, JobStatus, Rate, RowCounts, Running
from producer.interactive import Interrupted, interruptible, notebook_display, progress_html, progress_text


def status(**changed: Any) -> JobStatus:
    fields = {
        "id": "job-1", "status": Status.IN_PROGRESS, "model": "tiny", "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "labels": {}, "priority": 0, "batches": BatchCounts(),
        "rows": RowCounts(total=1_000, completed=200, failed=5), "running": Running(rows=45, tokens=9), "workers": 2,
        "rate": Rate(rows_per_s=12.34, tokens_per_s=567.8), "eta_s": 61.0, "store": "here",
    }  # fmt: skip
    return JobStatus(**{**fields, **changed})


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, "job-1 · 250/1,000 rows · 12.3 rows/s, 568 tokens/s · 61 s to go · 5 failed"),
        ({"workers": 0}, "job-1 · 250/1,000 rows · waiting for a worker to load tiny · 5 failed"),
        ({"status": Status.PAUSED, "reason": "a <b>"}, "job-1 · 250/1,000 rows · paused · 5 failed · a <b>"),
        ({"status": Status.COMPLETED, "rows": RowCounts(total=3, completed=3), "running": Running()},
         "job-1 · 3/3 rows · completed"),
    ],
)  # fmt: skip
def test_the_line_says_how_far_a_job_is(changed: dict[str, Any], wanted: str) -> None:
    assert progress_text(status(**changed)) == wanted


def test_what_people_wrote_is_no_html() -> None:
    assert "a &lt;b&gt;" in progress_html(status(reason="a <b>"))
    assert 'value="250" max="1000"' in progress_html(status())


def test_a_notebook_has_a_bar_that_is_drawn_anew_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, str]] = []

    class Handle:
        def update(self, shown: dict[str, str], raw: bool) -> None:
            drawn.append(("again", shown["text/plain"]))

    def display(shown: dict[str, str], raw: bool, display_id: bool) -> Handle:
        drawn.append(("first", shown["text/plain"]))
        return Handle()

    ipython, displays = ModuleType("IPython"), ModuleType("IPython.display")
    monkeypatch.setattr(ipython, "get_ipython", lambda: SimpleNamespace(kernel=object()), raising=False)
    monkeypatch.setattr(displays, "display", display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    bar = notebook_display()
    assert bar is not None
    with bar:
        bar.show(status())
        bar.show(status(status=Status.COMPLETED))

    assert [when for when, _ in drawn] == ["first", "again"]
    assert "completed" in drawn[1][1]


def test_where_there_is_no_notebook_there_is_no_such_bar() -> None:
    assert notebook_display() is None


def test_ctrl_c_is_still_a_keyboard_interrupt_and_says_what_becomes_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(KeyboardInterrupt) as raised, interruptible("the job goes on"):
        raise KeyboardInterrupt

    assert isinstance(raised.value, Interrupted)
    assert raised.value._render_traceback_() == ["interrupted: the job goes on"]
