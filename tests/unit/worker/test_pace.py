"""What a worker shows of its work survives idleness, and follows the recent past."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from worker.engine.request import EngineStats
from worker.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def stats(rows: int, seconds: float) -> EngineStats:
    """Counters of an engine whose rows have 10 prompt tokens and generate 5."""
    return EngineStats(rows=rows, prompt_tokens=10 * rows, completion_tokens=5 * rows, step_seconds=seconds)


def test_nothing_is_shown_before_the_first_row(clock: list[float]) -> None:
    pace = Pace()
    clock[0] = 5.0
    assert not pace.look(EngineStats(), False)
    shown = pace.shown(128)
    assert (shown.context, shown.rows_per_s, shown.chars_per_token, shown.max_tokens_used) == (128, 0.0, 0.0, 0.0)


def test_a_short_job_between_two_looks_counts_by_its_steps_and_idleness_not_at_all(clock: list[float]) -> None:
    pace = Pace()
    clock[0] = 5.0
    assert pace.look(stats(20, 0.5), False)
    for _ in range(100):
        clock[0] += 5.0
        assert not pace.look(stats(20, 0.5), False)
    shown = pace.shown(128)
    assert (shown.rows_per_s, shown.prompt_tokens_per_s, shown.tokens_per_s) == (40.0, 400.0, 200.0)
    assert time.time() - shown.at < 60


def test_time_with_work_in_hand_counts_whole(clock: list[float]) -> None:
    pace = Pace()
    pace.look(EngineStats(), True)
    clock[0] = 4.0
    pace.look(stats(8, 1.0), True)
    assert pace.shown(128).rows_per_s == 2.0


def test_what_was_long_ago_counts_less(clock: list[float]) -> None:
    pace = Pace()
    pace.look(EngineStats(), True)
    for at in range(1, 61):
        clock[0] = 60.0 * at
        pace.look(stats(60 * at, 60.0 * at), True)
    assert pace.shown(128).rows_per_s == 1.0
    for at in range(1, 61):
        clock[0] = 3_600 + 60.0 * at
        pace.look(stats(3_600 + 180 * at, 3_600 + 60.0 * at), True)
    assert 2.8 < pace.shown(128).rows_per_s < 3.0


def test_prompts_and_outputs_are_measured_by_their_sums() -> None:
    pace = Pace()
    pace.prompt(30, 10)
    pace.prompt(300, 50)
    pace.output(5, 10)
    pace.output(90, 90)
    shown = pace.shown(128)
    assert (shown.chars_per_token, shown.max_tokens_used) == (5.5, 0.95)


def test_prompts_of_long_ago_count_less() -> None:
    pace = Pace()
    for _ in range(20):
        pace.prompt(2**24, 2**22)
        pace.output(2**20, 2**22)
    for _ in range(40):
        pace.prompt(2**23, 2**22)
        pace.output(2**21, 2**22)
    shown = pace.shown(128)
    assert 2.0 <= shown.chars_per_token < 2.01
    assert 0.499 < shown.max_tokens_used <= 0.5


def test_a_look_needs_only_the_counters() -> None:
    pace = Pace()
    assert not pace.look(replace(EngineStats(), running_rows=3), True)
