"""The worker's two threads of upkeep: heartbeats never wait for a sweep."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import ForeignStoreError, RedisUnavailableError
from jobs.ledger import LeaseState, keys
from jobs.spec import SamplingParams
from jobs.store import Store
from tests.integration.ledger.ledger_work import let_leases_expire
from tests.integration.worker.conftest import Bench
from tests.patience import PATIENCE_S, wait_until
from worker.context import WorkerContext
from worker.engine.fake import FakeEngine
from worker.engine.request import EngineStats, Request
from worker.heartbeat import Upkeep

#: What sets the pace of the heartbeats; leases themselves last longer, and end when a test says so.
LEASE_S = 1.0


@dataclass
class Rounds:
    """Stands in for a Reconciler; a round takes until ``go_on`` is set, and fails as ``error`` says."""

    go_on: threading.Event = field(default_factory=threading.Event)
    begun: list[float] = field(default_factory=list)
    error: Exception | None = None

    def run_once(self) -> None:
        self.begun.append(time.monotonic())
        self.go_on.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    rounds = Rounds()
    yield rounds
    rounds.go_on.set()


@pytest.fixture
def worker(bench: Bench) -> WorkerContext:
    worker = bench.worker()
    worker.settings = worker.settings.model_copy(update={"lease_s": LEASE_S, "sweep_s": 0.1})
    return worker


@pytest.fixture
def upkeep(worker: WorkerContext, rounds: Any) -> Iterator[Upkeep]:
    upkeep = Upkeep(worker, rounds)
    upkeep.start()
    yield upkeep
    upkeep.stop()


def test_leases_live_on_and_a_permit_is_sent_while_a_sweep_takes_its_time(
    bench: Bench, worker: WorkerContext, rounds: Rounds, prompts: Callable[[int], list[Mapping[str, Any]]], request: Any
) -> None:
    job = bench.submit(prompts(8))
    bench.redis.delete(bench.permits.queue_key("fake"))
    claim = bench.ledger.claim(worker.info())
    assert claim is not None
    lease = worker.leases.hold(claim)
    request.getfixturevalue("upkeep")
    wait_until("a permit", lambda: bench.ledger.queue_length(bench.permits.queue_key("fake")))

    def moved_on() -> bool:
        seen.add(bench.redis.zscore(keys.key(bench.store.id, "leases"), f"{job.id}:{claim.batch}"))
        return len(seen) > 3

    seen: set[Any] = set()
    wait_until("heartbeats that extend the lease", moved_on)
    assert (lease.state, bench.state(job).running) == (LeaseState.HELD, 1)
    wait_until("the sweep", lambda: rounds.begun)
    assert len(rounds.begun) == 1


def test_leases_of_an_engine_that_stands_still_are_left_to_others_and_revived_when_it_goes_on(
    bench: Bench, worker: WorkerContext, rounds: Any, prompts: Callable[[int], list[Mapping[str, Any]]]
) -> None:
    job = bench.submit(prompts(4))
    claim = bench.ledger.claim(worker.info())
    assert claim is not None
    lease = worker.leases.hold(claim)
    worker.engine = FakeEngine(hang_on="lamp")
    worker.engine.submit(Request("job", [*b"lamp"], SamplingParams(max_tokens=5), 1))
    worker.engine.start()
    wait_until("the engine to hang", lambda: worker.engine.rows_in_hand)
    heartbeat = Upkeep(worker, rounds).heartbeat
    stats = replace(EngineStats(), running_rows=1)
    worker.engine.stats = lambda: stats  # type: ignore[method-assign]
    heartbeat.beat()
    let_leases_expire(bench.redis, bench.ledger)
    heartbeat.beat()
    assert bench.ledger.sweep("another").returned == []

    heartbeat._pulse._moved -= worker.settings.stall_s * 0.6
    let_leases_expire(bench.redis, bench.ledger)
    heartbeat.beat()
    assert bench.ledger.sweep("another").returned == [(job.id, 0)]

    stats = replace(stats, steps=1)
    heartbeat.beat()
    assert lease.state is LeaseState.HELD
    assert bench.state(job).running == 1
    worker.engine.close()


def test_no_sweep_for_a_lease_after_an_outage(upkeep: Upkeep, rounds: Rounds) -> None:
    rounds.error = RedisUnavailableError("away")
    rounds.go_on.set()
    wait_until("a second round", lambda: len(rounds.begun) > 1)
    assert rounds.begun[1] - rounds.begun[0] >= LEASE_S


def test_a_heartbeat_that_fails_holds_off_the_sweeps(
    worker: WorkerContext, rounds: Rounds, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    beats: list[float] = []

    def away(info: object, worked: bool) -> None:
        beats.append(time.monotonic())
        raise RedisUnavailableError("away")

    # Each beat holds the sweeps off for so long, and beats come six times as often.
    worker.settings = worker.settings.model_copy(update={"lease_s": 3 * LEASE_S})
    rounds.go_on.set()
    monkeypatch.setattr(worker.ledger, "register", away)
    request.getfixturevalue("upkeep")
    # With the second it is certain that the first has failed; whoever was quicker than that may have begun a round.
    wait_until("a beat that fails", lambda: len(beats) > 1)
    begun = len(rounds.begun)
    wait_until("beats that fail", lambda: len(beats) > 4)
    assert len(rounds.begun) <= begun + 1
    monkeypatch.undo()
    wait_until("sweeps again", lambda: len(rounds.begun) > begun + 2)


def test_a_worker_is_not_listed_again_after_the_end_of_its_upkeep(
    bench: Bench, worker: WorkerContext, upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, late = worker.ledger.register, threading.Event()

    def slowly(info: Any, worked: bool) -> None:
        late.set()
        time.sleep(0.5)
        register(info, worked=worked)

    monkeypatch.setattr(worker.ledger, "register", slowly)
    assert late.wait(PATIENCE_S)
    upkeep.stop()
    bench.ledger.unregister(worker.registration.id)
    time.sleep(0.7)
    assert bench.ledger.workers() == []


def test_a_worker_whose_store_was_replaced_by_another_drains(
    bench: Bench, worker: WorkerContext, rounds: Rounds, tmp_path: Path, request: Any
) -> None:
    """It would wait for permits that nobody sends it."""
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        (tmp_path / "store").rename(tmp_path / "away")
        rounds.go_on.set()
        request.getfixturevalue("upkeep")
        wait_until("sweeps", lambda: len(rounds.begun) > 2)
        assert not told.is_set(), "a store that is gone may come back"
        Store.open(str(tmp_path / "store"), create=True)
        wait_until("the drain", told.is_set)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(worker.outdated, ForeignStoreError)
