"""Waiting for a job: what a watcher does while Redis is away, and after."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from jobs.errors import RedisUnavailableError
from jobs.settings import Settings
from jobs.spec import Status, now
from jobs.status import BatchCounts, JobStatus, RowCounts
from producer import watch
from producer.connection import Connection
from producer.watch import statuses


class Clock:
    """A clock that goes on only while somebody sleeps."""

    def __init__(self) -> None:
        self.at = 1_000.0

    def monotonic(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def status(kind: Status) -> JobStatus:
    rows = RowCounts(total=1, completed=0, failed=0, cancelled=0, expired=0)
    batches = BatchCounts(total=1, done=0, running=0)
    return JobStatus(
        id="job", status=kind, model="tiny", labels={}, priority=0, created_at=now(), rows=rows, batches=batches,
        store="memory://",
    )  # fmt: skip


def upkeep_times(monkeypatch: pytest.MonkeyPatch, answers: Iterator[Any]) -> tuple[list[float], Clock]:
    """When a watcher of a job whose status is ``answers``, one after the other, did its upkeep."""
    clock, times = Clock(), []

    def look(*_: Any) -> JobStatus:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return status(answer)

    monkeypatch.setattr(watch, "time", clock)
    monkeypatch.setattr(watch, "job_status", look)
    monkeypatch.setattr(watch, "tend", lambda *_: times.append(clock.at))
    connection = Connection(Settings.load(store="memory://", lease_s=30.0, sweep_s=5.0), create=True)
    for _ in statuses(connection, "job"):
        pass
    return times, clock


def test_upkeep_goes_on_at_its_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    times, _ = upkeep_times(monkeypatch, iter([Status.IN_PROGRESS] * 21 + [Status.COMPLETED]))

    assert times == [1_000.0, 1_005.0, 1_010.0]


def test_after_an_outage_workers_have_a_lease_s_time_before_leases_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    down = RedisUnavailableError("Redis is away")
    answers = [Status.IN_PROGRESS, *[down] * 4, *[Status.IN_PROGRESS] * 80, Status.COMPLETED]
    times, _ = upkeep_times(monkeypatch, iter(answers))
    last_seen_down = 1_000.0 + 0.5 + 3 * 2.5

    assert times[0] == 1_000.0
    assert times[1] >= last_seen_down + 30.0
