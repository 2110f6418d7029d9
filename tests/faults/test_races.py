"""What people and clocks do to a job meets what workers do: each row has one outcome, and the counts agree with it."""

from __future__ import annotations

import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from fault_work import assert_whole, submit

from ops.faults import plugin
from ops.faults.checker import Expected, check_job
from tests.mill import Mill
from tests.patience import wait_until
from tests.processes import Worker

pytestmark = pytest.mark.faults

ROWS = 120


@pytest.fixture(scope="module")
def workers(mill: Mill, tiny: Path) -> list[Worker]:
    return mill.workers("tiny", tiny, 2)


def settled(mill: Mill, job: str, ending: str) -> Counter[str]:
    """The job ends as ``ending``, or completed in time; its rows by status."""
    mill.wait_for(job, "completed", ending)
    assert check_job(mill.store_path, Expected(job, ROWS, endings=frozenset({"completed", ending}))) == []
    status, found = mill.status(job), Counter(mill.table(job)["status"].to_pylist())
    assert found == Counter({"ok": status["rows"]["completed"], ending: status["rows"][ending]}) - Counter()
    return found


@pytest.mark.parametrize("rows", [0, 10, 40, 80, 110, 120])
def test_a_cancel_keeps_what_is_committed_and_ends_the_rest(mill: Mill, workers: list[Worker], rows: int) -> None:
    job = submit(mill, f"cancelled-at-{rows}", ROWS, 10)
    mill.wait_for_rows(job, rows)
    before = mill.status(job)["rows"]["completed"]
    mill.call("cancel", job).ok()
    found = settled(mill, job, "cancelled")
    assert found["ok"] >= before


def test_a_cancel_of_what_is_paused_waiting_or_over(mill: Mill, workers: list[Worker]) -> None:
    with mill.held(batch=2):
        paused = submit(mill, "paused", ROWS, 10)
        mill.call("pause", paused).ok()
    waiting = submit(mill, "waiting", ROWS, 10, model="nobody")
    over = submit(mill, "over", 10, 10, tokens=2)
    mill.wait_for(over, "completed")
    for job in (paused, waiting, over):
        mill.call("cancel", job).ok()
    settled(mill, paused, "cancelled")
    assert settled(mill, waiting, "cancelled") == {"cancelled": ROWS}
    assert mill.status(over)["status"] == "completed"


def test_two_cancels_at_once_and_another_one_after(mill: Mill, workers: list[Worker]) -> None:
    job = submit(mill, "twice", ROWS, 10)
    mill.wait_for_rows(job, 20)
    commands = [mill.start("cancel", job, name=f"cancel{number}") for number in range(2)]
    assert [command.wait() for command in commands] == [0, 0]
    settled(mill, job, "cancelled")
    mill.call("cancel", job).ok()


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_deadline_that_passes_while_rows_are_committed(mill: Mill, workers: list[Worker], seconds: int) -> None:
    name = f"deadline-{seconds}"
    source = mill.prompts(name, ROWS)
    flags = ("--model", "tiny", "--max-tokens", "64", "--batch-size", "5", "--job-id", name)
    mill.call("submit", source, *flags, "--deadline", f"{seconds}s").ok()
    settled(mill, name, "expired")


def test_a_job_that_is_paused_and_resumed_all_the_time_completes(mill: Mill, workers: list[Worker]) -> None:
    job = submit(mill, "nervous", ROWS, 5)
    for _ in range(6):
        paused = mill.call("pause", job)
        resumed = mill.call("resume", job)
        assert {paused.code, resumed.code} <= {0, 2}  # 2: all of its batches are done
        time.sleep(0.2)
    assert_whole(mill, job, ROWS)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at a process in /proc")
@pytest.mark.parametrize("point", ["after claim batch", "before put part", "before finish"])
def test_two_workers_meet_at_one_batch(mill: Mill, tiny: Path, workers: list[Worker], point: str) -> None:
    """One is stopped for longer than its lease: another takes the batch; then the first goes on."""
    for worker in workers:
        worker.send(signal.SIGSTOP)
    slow = mill.worker("tiny", tiny, PLUGIN=plugin.__name__, FAULTS_STOP=point)
    job = submit(mill, point.replace(" ", "-"), 40, 10)
    stat = Path(f"/proc/{slow.pid}/stat")
    wait_until("the worker to stop", lambda: slow.alive and stat.read_text().rsplit(")", 1)[1].split()[0] == "T")
    for worker in workers:
        worker.send(signal.SIGCONT)
    try:
        assert_whole(mill, job, 40)
        slow.send(signal.SIGCONT)
        after = submit(mill, f"after-{point.replace(' ', '-')}", 40, 10)
        assert_whole(mill, after, 40)
        assert_whole(mill, job, 40)
        assert slow.alive
    finally:
        slow.close()
