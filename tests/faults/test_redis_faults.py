"""Redis ends, forgets, fills up or stands still in the middle of a job."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from fault_work import assert_whole, submit

from tests.mill import Mill
from tests.patience import wait_until
from tests.processes import Worker
from tests.redis_server import Server

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"), "enable-debug-command yes").start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def worker(mill: Mill, tiny: Path) -> Worker:
    """One worker for all of these tests: none of these faults may end it."""
    worker = mill.worker("tiny", tiny)
    mill.wait_for_workers([worker])
    return worker


def test_it_may_be_killed_again_and_again(mill: Mill, server: Server, worker: Worker) -> None:
    job = submit(mill, "killed")
    for rows in (40, 120, 200):
        mill.wait_for_rows(job, rows)
        server.kill()
        server.start()
    assert_whole(mill, job)
    assert worker.alive


def test_it_may_end_without_saving(mill: Mill, server: Server, worker: Worker) -> None:
    job = submit(mill, "unsaved")
    mill.wait_for_rows(job, 60)
    with pytest.raises(redis.ConnectionError):
        server.client.execute_command("SHUTDOWN", "NOSAVE")
    server.kill()
    server.start()
    assert_whole(mill, job)
    assert worker.alive


def test_the_end_of_its_append_only_file_may_be_lost(mill: Mill, server: Server, worker: Worker) -> None:
    job = submit(mill, "truncated")
    mill.wait_for_rows(job, 60)
    server.kill()
    file = max(server.folder.glob("appendonlydir/*.aof"), key=lambda path: path.stat().st_size)
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 3_000)
    server.start()
    assert_whole(mill, job)
    assert worker.alive


def test_its_disk_may_be_lost(mill: Mill, server: Server, worker: Worker) -> None:
    job = submit(mill, "diskless")
    mill.wait_for_rows(job, 60)
    server.kill()
    for path in server.folder.glob("appendonlydir/*"):
        path.unlink()
    server.start()
    assert_whole(mill, job)
    assert worker.alive


def test_its_memory_may_be_full_for_a_while(mill: Mill, server: Server, worker: Worker) -> None:
    before = len(worker.said())
    with mill.held(batch=2):
        job = submit(mill, "full")
        mill.wait_for_rows(job, 40)
        server.client.config_set("maxmemory", 1)
    wait_until("what is claimed to end", lambda: not mill.status(job)["batches"]["running"])
    stopped = mill.status(job)["rows"]["completed"]
    time.sleep(1)
    assert mill.status(job)["rows"]["completed"] == stopped < 300, "no more is claimed"
    server.client.config_set("maxmemory", 0)
    assert_whole(mill, job)
    assert worker.alive
    assert "Traceback" not in worker.said()[before:]


def test_its_memory_may_be_full_when_an_idle_worker_takes_a_permit(mill: Mill, server: Server, worker: Worker) -> None:
    before = len(worker.said())
    worker.send(signal.SIGSTOP)
    job = submit(mill, "idle")
    server.client.config_set("maxmemory", 1)
    worker.send(signal.SIGCONT)
    wait_until("the worker to find no room", lambda: "no claim: " in worker.said()[before:])
    time.sleep(3)
    server.client.config_set("maxmemory", 0)
    assert_whole(mill, job)
    assert worker.alive
    said = worker.said()[before:]
    assert "Traceback" not in said
    assert len(said.splitlines()) < 100, "it waits longer each time"


def test_it_may_stand_still_for_longer_than_a_lease(mill: Mill, server: Server, worker: Worker) -> None:
    job = submit(mill, "still")
    mill.wait_for_rows(job, 40)
    server.client.execute_command("DEBUG", "SLEEP", "4.9")
    assert_whole(mill, job)
    assert worker.alive


def test_it_may_not_answer_for_longer_than_anyone_waits(mill: Mill, server: Server, worker: Worker) -> None:
    job = submit(mill, "stopped")
    mill.wait_for_rows(job, 40)
    server.pause()
    time.sleep(12)
    server.go_on()
    assert_whole(mill, job)
    assert worker.alive
