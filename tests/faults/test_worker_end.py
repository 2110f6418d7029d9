"""A worker process whose consumer dies ends and says so; one that was told to stop ends with 0."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.permits import queue_key
from tests.mill import Mill
from tests.patience import wait_until
from tests.ports import free_port
from tests.processes import Process
from tests.web import get
from worker.heartbeat import EXIT_ENGINE

pytestmark = pytest.mark.faults

#: Seconds; the grace period of these workers is 2, and that of one of them is minutes.
SOON_S = 60.0


@pytest.fixture
def worker(mill: Mill, tiny: Path) -> Process:
    worker = mill.worker("tiny", tiny, "--grace", "2", "--concurrency", "8")
    mill.wait_for_workers([worker])
    return worker


@pytest.fixture
def busy(mill: Mill, worker: Process) -> Callable[[int], str]:
    """A job of seconds of work, of which the worker has a batch of so many rows in hand."""

    def submit(batch: int) -> str:
        flags = ("--model", "tiny", "--max-tokens", "64", "--batch-size", str(batch))
        job = mill.call("submit", mill.prompts(f"lamp{len(mill.processes)}", 3000), *flags).ok().out.strip()
        wait_until("a batch to run", lambda: mill.status(job)["batches"]["running"])
        return job

    return submit


def garbage(mill: Mill) -> None:
    with mill.redis() as client:
        client.rpush(queue_key(mill.store.id, "tiny"), "not json")


def test_garbage_in_the_queue_ends_an_idle_worker_with_a_status_that_asks_for_a_new_one(
    mill: Mill, worker: Process
) -> None:
    garbage(mill)
    assert worker.wait(SOON_S) == EXIT_ENGINE
    assert "the consumer of permits stopped" in worker.said()
    with mill.ledger() as ledger:
        assert worker.pid not in {other.pid for other in ledger.workers()}


def test_garbage_in_the_queue_makes_a_worker_hand_back_its_batch_and_end(
    mill: Mill, worker: Process, busy: Callable[[int], str]
) -> None:
    with mill.held(batch=0):
        job = busy(3000)  # its other slot waits for permits
        garbage(mill)
        assert worker.wait(SOON_S) == EXIT_ENGINE
    status = mill.status(job)
    assert (status["status"], status["batches"]["running"]) == ("in_progress", 0)
    mill.call("cancel", job).ok()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_is_told_to_stop_ends_with_0_however_often_it_is_told(
    mill: Mill, worker: Process, busy: Callable[[int], str], number: signal.Signals
) -> None:
    job = busy(20)
    for _ in range(3):
        worker.send(number)
        time.sleep(0.2)
    assert worker.wait(SOON_S) == 0
    mill.call("cancel", job).ok()


def test_a_second_signal_ends_the_grace_period(mill: Mill, tiny: Path) -> None:
    worker = mill.worker("tiny", tiny, "--grace", "600", "--max-rows", "1")
    mill.wait_for_workers([worker])
    source = mill.prompts("patience", 3000)
    flags = ("--model", "tiny", "--max-tokens", "64", "--batch-size", "3000")
    job = mill.call("submit", source, *flags).ok().out.strip()
    wait_until("a batch to run", lambda: mill.status(job)["batches"]["running"])
    worker.send(signal.SIGTERM)
    # Two signals that come before a process has looked at the first are one.
    wait_until("the grace period to begin", lambda: "draining: " in worker.said())
    time.sleep(1)
    assert worker.alive
    worker.send(signal.SIGTERM)
    assert worker.wait(SOON_S) == 0
    assert mill.status(job)["batches"]["running"] == 0, "its batch was handed back"
    mill.call("cancel", job).ok()


def test_sigquit_changes_nothing(mill: Mill, worker: Process, busy: Callable[[int], str]) -> None:
    job = busy(20)
    worker.send(signal.SIGQUIT)
    mill.wait_for_rows(job, 200)
    assert worker.alive
    worker.send(signal.SIGTERM)
    worker.send(signal.SIGQUIT)
    assert worker.wait(SOON_S) == 0
    mill.call("cancel", job).ok()


def test_a_scrape_reads_the_engine_and_a_taken_port_is_refused(mill: Mill, tiny: Path) -> None:
    port = free_port()
    worker = mill.worker("tiny", tiny, "--metrics-port", str(port))
    mill.wait_for_workers([worker])
    lines = get(port, "/metrics")[1].splitlines()
    assert "# TYPE promptmill_step_seconds summary" in lines
    assert [line.split()[0] for line in lines if line.startswith("promptmill_step_seconds")] == [
        "promptmill_step_seconds_count",
        "promptmill_step_seconds_sum",
    ]
    second = mill.worker("tiny", tiny, "--metrics-port", str(port))
    assert second.wait() == 2
    said = second.said().splitlines()
    assert said[-1].startswith(f"error: --metrics-port {port} cannot be used")
    worker.send(signal.SIGTERM)
    assert worker.wait(SOON_S) == 0
