"""What the ledger takes away from a running batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.ledger import LeaseState
from jobs.reconcile import Reconciler
from jobs.spec import Status
from tests.patience import PATIENCE_S, wait_until
from worker.claims import run_claim, run_permit
from worker.context import WorkerContext
from worker.engine.request import Request
from worker.heartbeat import Upkeep

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


class Running:
    """A permit that is being used on a thread, its batch in the engine."""

    def __init__(self, bench: Bench, rows: list[dict[str, Any]]) -> None:
        self.worker = bench.worker("slow", tokens_per_second=40.0)
        self.job = bench.submit(rows, batch_size=len(rows), max_tokens=20)
        self.upkeep = Upkeep(self.worker, Reconciler(bench.store, bench.ledger, bench.permits, "slow"))
        self._thread = threading.Thread(target=run_permit, args=(self.worker,))
        self._thread.start()
        self.requests: list[Request] = []
        wait_until("the first row", lambda: self.worker.engine.stats().rows)
        # From here on so slow that the batch does not end by itself while a test does something about it.
        self.worker.engine._tokens_per_second = 4.0  # type: ignore[attr-defined]

    def beat(self) -> None:
        """A heartbeat, as its thread would send it."""
        self.upkeep.heartbeat.beat()

    def end(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_cancelling_keeps_the_finished_rows_of_a_running_batch(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    running.job.cancel()
    running.beat()
    running.end()
    state = bench.run(bench.worker(), running.job)

    assert state.status is Status.CANCELLED
    assert state.completed >= 1
    assert state.cancelled >= 1
    rows = bench.rows(running.job)
    assert len(rows) == 12
    assert all((row["text"] is None) == (row["status"] == "cancelled") for row in rows)


def test_a_batch_that_another_worker_has_taken_is_dropped(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    other = bench.worker("other")
    lease = next(iter(running.worker.leases))
    bench.ledger.release(lease.claim.job, lease.claim.batch, lease.claim.token)
    run_claim(other)
    running.beat()
    running.end()

    assert lease.state is LeaseState.LOST
    assert set(bench.part(running.job, 0)["worker"].to_pylist()) == {"other"}
    assert bench.state(running.job).done == 1


def test_a_worker_whose_grace_is_over_hands_its_batch_back(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    running.worker.abandoned.set()
    running.end()

    assert (bench.state(running.job).running, bench.state(running.job).done) == (0, 0)
    assert bench.run(bench.worker("next"), running.job).completed == 12
    assert {row["attempt"] for row in bench.rows(running.job)} == {2}


def test_a_heartbeat_shows_what_is_in_hand(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    running.beat()
    state = bench.state(running.job)
    [listed] = bench.ledger.workers()

    assert state.running == 1
    assert (listed.id, listed.in_hand) == ("slow", 1)
    running.worker.abandoned.set()
    running.end()


def test_a_batch_that_was_handed_back_is_not_in_hand_during_the_pause(
    bench: Bench, prompts: Prompts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The heartbeats of the pause would report it, and hear that it is lost."""
    worker, in_hand = bench.worker(), []
    job = bench.submit(prompts(4))
    monkeypatch.setattr(WorkerContext, "back_off", lambda self: in_hand.append(len(self.leases)))
    (tmp_path / "store").rename(tmp_path / "away")
    run_claim(worker)
    (tmp_path / "away").rename(tmp_path / "store")
    assert in_hand == [0]
    assert bench.run(worker, job).status is Status.COMPLETED
