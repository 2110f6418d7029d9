"""A worker whose task dies, whose clock is wrong, or that may open few files still does its work."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_work import assert_whole, leases, submit

from ops.faults import plugin
from tests.mill import LONG_LEASE, Mill
from tests.patience import wait_until

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("error", ["MemoryError", "SystemExit", "KeyboardInterrupt", "RecursionError"])
def test_a_task_that_dies_leaves_its_slot_usable(mill: Mill, tiny: Path, error: str) -> None:
    flags, faults = ("--concurrency", "1"), {"PLUGIN": plugin.__name__, "FAULTS_RAISE": error}
    worker = mill.worker("tiny", tiny, *flags, **faults, **LONG_LEASE)
    try:
        job = submit(mill, f"dies-of-{error}", 20, 10, tokens=4)
        assert_whole(mill, job, 20)
        assert worker.alive
        assert f"{error}: a fault" in worker.said()
        assert sorted(set(mill.table(job)["attempt"].to_pylist())) == [1, 2]
    finally:
        worker.close()


@pytest.mark.parametrize("ahead", ["3600", "-3600"])
def test_a_clock_that_is_an_hour_off_changes_nothing_but_the_times_that_rows_tell(
    mill: Mill, tiny: Path, ahead: str
) -> None:
    off = mill.worker("tiny", tiny, PLUGIN=plugin.__name__, FAULTS_CLOCK=ahead, **LONG_LEASE)
    right = mill.worker("tiny", tiny, **LONG_LEASE)
    mill.wait_for_workers([off, right])
    try:
        with mill.held(batch=0):
            job = submit(mill, f"clock{ahead}", 300)
            for worker in (off, right):
                wait_until(
                    "both to have batches in hand",
                    lambda name=f"-{worker.pid}-": any(name in owner for owner in leases(mill, job)),
                )
        assert_whole(mill, job, 300)
        table = mill.table(job)
        assert set(table["attempt"].to_pylist()) == {1}, "nobody took the lease of a worker that lives"
        started = [time.timestamp() for time in table["started_at"].to_pylist()]
        assert max(started) - min(started) > 3_500, "both had work, and one clock was an hour off"
    finally:
        off.close()
        right.close()


def test_few_open_files_are_enough(mill: Mill, tiny: Path) -> None:
    worker = mill.worker("tiny", tiny, PLUGIN=plugin.__name__, FAULTS_FILES="64")
    try:
        job = submit(mill, "files", 100)
        assert_whole(mill, job, 100)
        assert worker.alive
    finally:
        worker.close()
