"""Workers, producers and Redis are killed in the middle of a job; its rows are exactly those that were submitted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fault_work import leases, submit

from tests.mill import Mill, rows_in_order
from tests.patience import wait_until
from tests.processes import Process, Worker
from tests.redis_server import Server

pytestmark = pytest.mark.faults

#: Seconds: many times the lease and the sweep of these workers, and fewer than the lease that workers have by default.
NOTICED_S = 45.0


@pytest.fixture
def workers(mill: Mill, tiny: Path) -> list[Worker]:
    """Two live workers; what an earlier test has killed is started anew."""
    alive = [process for process in mill.processes if isinstance(process, Worker) and process.alive]
    alive += [mill.worker("tiny", tiny, "--grace", "0.2") for _ in range(2 - len(alive))]
    mill.wait_for_workers(alive)
    return alive


def stop_with_leases(mill: Mill, job: str, worker: Process) -> None:
    """Stops a worker at a moment at which it holds batches of ``job``."""

    def caught() -> bool:
        worker.send(signal.SIGSTOP)
        if any(f"-{worker.pid}-" in owner for owner in leases(mill, job)):
            return True
        worker.send(signal.SIGCONT)
        return False

    wait_until("the worker to hold a lease", caught)


def assert_exactly(mill: Mill, job: str, rows: int) -> dict[str, Any]:
    """The job completes with each row once, in order, all of them generated. Its status."""
    status = mill.wait_for(job, "completed", "failed", "cancelled", "expired")
    table = mill.table(job)

    assert status["status"] == "completed"
    assert status["rows"] == {"total": rows, "completed": rows, "failed": 0, "cancelled": 0, "expired": 0}
    assert rows_in_order(table) == [(index, 0) for index in range(rows)]
    assert table["number"].to_pylist() == list(range(rows))
    assert table["text"].null_count == 0
    manifest = json.loads((mill.dataset(job) / "_manifest.json").read_bytes())
    assert manifest["rows"]["total"] == rows
    return status


def test_a_worker_that_is_killed_half_way_costs_no_row(mill: Mill, workers: list[Worker]) -> None:
    with mill.held(batch=4):
        job = submit(mill, "killed", 1_000, 50)
        mill.wait_for_rows(job, 200)
        stop_with_leases(mill, job, workers[0])
        workers[0].send(signal.SIGKILL)

    assert_exactly(mill, job, 1_000)
    # Whether the dead worker had committed anything by then is the machine's business.
    assert max(mill.table(job)["attempt"].to_pylist()) >= 2, "what the dead worker held was run again"


def test_a_worker_that_is_told_to_end_hands_its_batches_back_at_once(mill: Mill, workers: list[Worker]) -> None:
    with mill.held(batch=2):
        job = submit(mill, "drained")
        mill.wait_for_rows(job, 40)
        stop_with_leases(mill, job, workers[0])
        workers[0].send(signal.SIGTERM)
        workers[0].send(signal.SIGCONT)
        assert workers[0].wait() == 0

    assert not [owner for owner in leases(mill, job) if f"-{workers[0].pid}-" in owner]
    with mill.ledger() as ledger:
        assert workers[0].pid not in {worker.pid for worker in ledger.workers()}
    assert_exactly(mill, job, 300)


def test_a_flushed_redis_learns_its_jobs_from_the_store(mill: Mill, workers: list[Worker]) -> None:
    job = submit(mill, "flushed")
    mill.wait_for_rows(job, 80)
    with mill.redis() as client:
        client.flushall()

    # Nobody asks for the job meanwhile: the workers' own upkeep has to find it.
    wait_until("the dataset", (mill.dataset(job) / "_SUCCESS").exists)
    assert_exactly(mill, job, 300)


def test_redis_may_crash_and_come_back(mill: Mill, server: Server, workers: list[Worker]) -> None:
    with mill.held(batch=4):  # what has ended is told without Redis
        job = submit(mill, "crashed")
        mill.wait_for_rows(job, 80)
        server.kill()
        time.sleep(1.0)
        down = mill.call("status", job)
    server.start()

    assert down.code == 3
    wait_until("the dataset", (mill.dataset(job) / "_SUCCESS").exists)
    assert_exactly(mill, job, 300)
    assert all(worker.alive for worker in workers)


def test_lost_permits_lose_no_work(mill: Mill, workers: list[Worker]) -> None:
    with mill.redis() as client:
        job = submit(mill, "permits", 100)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            for name in client.keys(f"promptmill:{mill.store.id}:celery:permits.*"):
                client.delete(name)

    assert_exactly(mill, job, 100)


def test_a_producer_that_is_killed_while_it_stages_has_accepted_nothing(mill: Mill, workers: list[Worker]) -> None:
    lines = [json.dumps({"prompt": f"staged {number}", "number": number}) + "\n" for number in range(600)]
    flags = ("submit", "-", "--model", "tiny", "--max-tokens", "2", "--batch-size", "100")
    before, stages = mill.job_files(), set(mill.stages())
    producer = mill.start(*flags, stdin=subprocess.PIPE)
    assert producer.popen.stdin is not None
    producer.popen.stdin.write("".join(lines[:450]).encode())
    producer.popen.stdin.flush()
    wait_until("the first batches to be staged", lambda: set(mill.stages()) - stages)
    producer.send(signal.SIGKILL)
    producer.wait()

    assert mill.job_files() == before
    done = mill.call(*flags, "--wait", stdin="".join(lines).encode()).ok()
    assert_exactly(mill, done.out.strip(), 600)


def test_a_job_whose_producer_died_before_it_told_redis_is_run(mill: Mill, workers: list[Worker]) -> None:
    job = mill.call("submit", mill.prompts("untold", 60), "--model", "later", "--batch-size", "10").ok().out.strip()

    def forgotten() -> bool:
        ledger.forget(job)
        return ledger.job(job) is None

    with mill.ledger() as ledger:
        # The workers look for such jobs too, twice a minute.
        wait_until("Redis not to know of the job", forgotten)

    assert mill.status(job)["status"] == "in_progress"
    with mill.ledger() as ledger:
        assert ledger.claimable("later") == 6
    mill.call("cancel", job).ok()


def test_the_death_of_a_worker_is_noticed_within_lease_and_sweep(mill: Mill, workers: list[Worker]) -> None:
    with mill.held(batch=0):
        job = submit(mill, "noticed", 200, 20)
        stop_with_leases(mill, job, workers[0])
        workers[0].send(signal.SIGKILL)
        killed = time.monotonic()
        wait_until(
            "its leases to go back", lambda: not any(f"-{workers[0].pid}-" in owner for owner in leases(mill, job))
        )
        assert time.monotonic() - killed < NOTICED_S
    assert_exactly(mill, job, 200)


def test_no_stranger_is_left(mill: Mill) -> None:
    """Runs last: every batch was finished once, so nothing is leased, and nothing waits."""
    with mill.ledger() as ledger:
        assert [job.id for job in ledger.jobs() if not job.status.ended] == []
    assert os.listdir(mill.store_path / "results")
