"""Real workers under a supervisor: one is killed, all are replaced, and the supervisor itself is killed."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.faults.fault_work import assert_whole, submit
from tests.mill import Mill
from tests.patience import wait_until
from tests.processes import Command

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(400)]

#: Seconds for two or three processes, one after another, to import torch on a machine that has much else to do.
LONG_S = 180.0
FLAGS = ("--threads", "1", "--concurrency", "2", "--max-rows", "16", "--grace", "10")


@pytest.fixture(scope="module")
def supervisor(mill: Mill, tiny: Path) -> Command:
    """Of two processes, both of which serve ``tiny``."""
    supervisor = mill.start_worker("--model", f"tiny={tiny}", "--devices", "cpu,cpu", *FLAGS)
    wait_until("both to serve", lambda: "2 of 2 processes serve: cpu:0, cpu:1" in supervisor.said(), LONG_S)
    return supervisor


@pytest.fixture(scope="module", autouse=True)
def _none_is_left(mill: Mill) -> Iterator[None]:
    yield
    for pid in registered(mill):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def registered(mill: Mill) -> set[int]:
    """Processes that are listed as live workers, and live."""
    with mill.ledger() as ledger:
        return {worker.pid for worker in ledger.workers() if is_alive(worker.pid)}


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def test_jobs_end_whole_while_one_process_is_killed_and_all_are_replaced(mill: Mill, supervisor: Command) -> None:
    before = registered(mill)
    assert len(before) == 2
    job = submit(mill, "killed")
    mill.wait_for_rows(job, 20)
    os.kill(min(before), signal.SIGKILL)
    supervisor.send(signal.SIGHUP)
    assert_whole(mill, job, timeout_s=LONG_S)
    for number in count():
        if "rolling restart: done" in supervisor.said():
            break
        assert registered(mill), "there is always one that serves"
        assert_whole(mill, submit(mill, f"rolled-{number}", rows=60), rows=60, timeout_s=LONG_S)
    assert len(registered(mill) - before) == 2
    assert "0 of 2 processes serve" not in supervisor.said()
    assert "was ended by signal 9" in supervisor.said()


def test_a_killed_supervisor_takes_its_processes_with_it(mill: Mill, supervisor: Command) -> None:
    pids = registered(mill)
    supervisor.send(signal.SIGKILL)
    supervisor.wait()
    wait_until("its processes to end", lambda: not any(is_alive(pid) for pid in pids), LONG_S)
    with mill.ledger() as ledger:
        assert not pids & {worker.pid for worker in ledger.workers()}, "they went in good order"
