"""Upkeep: jobs nobody told of, chains that stalled, deadlines, leases, a Redis that forgot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from jobs import layout, reconcile
from jobs.deletion import delete_job
from jobs.errors import StoreUnavailableError
from jobs.finalize import finalize
from jobs.ledger import FINALIZE, Ledger, keys
from jobs.permits import Permits
from jobs.reconcile import Reconciler
from jobs.spec import Status, now
from jobs.store import Store
from tests.job_work import accept_job, claims, do_batches, run_batches, worker_info


@pytest.fixture
def reconciler(store: Store, ledger: Ledger, permits: Permits) -> Reconciler:
    return Reconciler(store, ledger, permits, "me")


@pytest.fixture
def queued(ledger: Ledger, permits: Permits) -> Callable[[], int]:
    return lambda: ledger.queue_length(permits.queue_key("tiny"))


@pytest.fixture
def _adopt_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "ADOPT_INTERVAL_S", 0.0)


@pytest.fixture
def sweep_s_passes(ledger: Ledger, redis_server: Any) -> Callable[[], None]:
    """Lets the last sweep and the last claims be further back than ``sweep_s``."""

    def passes() -> None:
        redis_server.client.delete(keys.key(ledger.store_id, "sweeping"))
        redis_server.client.hset(keys.key(ledger.store_id, "vtime", "tiny"), "claimed", 1.0)

    return passes


# -- Jobs that the ledger was not told of.


def test_an_accepted_job_is_adopted_with_its_finished_batches(
    store: Store, ledger: Ledger, reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    job = accept_job(store)
    run_batches(store, job, [1])
    reconciler.run_once()
    assert claims(ledger) == [("job", 0), ("job", 2)]
    assert "job job was accepted but unknown to the ledger" in caplog.text


@pytest.mark.usefixtures("_adopt_always")
def test_known_and_ended_jobs_are_left_as_they_are(
    store: Store, ledger: Ledger, reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.accept(accept_job(store, "known"))
    ledger.pause("known")
    ended = accept_job(store, "ended")
    run_batches(store, ended)
    finalize(store, ended, Status.COMPLETED)
    for _ in range(2):
        reconciler.run_once()
    assert {state.id: state.status for state in ledger.jobs()} == {"known": Status.PAUSED}
    assert caplog.records == []


@pytest.mark.usefixtures("_adopt_always")
def test_a_job_whose_deletion_the_ledger_was_not_told_of_is_forgotten(
    store: Store, ledger: Ledger, reconciler: Reconciler
) -> None:
    """Its deletion was killed in between; or Redis is as it was before."""
    for name in ("deleted", "other"):
        ledger.accept(accept_job(store, name))
    delete_job(store, "deleted", lambda job: None)
    reconciler.run_once()
    assert [state.id for state in ledger.jobs()] == ["other"]


@pytest.mark.usefixtures("_adopt_always")
def test_a_record_that_cannot_be_read_is_said_once_and_stops_nobody(
    store: Store, ledger: Ledger, reconciler: Reconciler, caplog: pytest.LogCaptureFixture
) -> None:
    store.put_if_absent(layout.job_file("bad"), b"{")
    store.put_if_absent("jobs/my notes.json", b"{}")
    accept_job(store, "good")
    for _ in range(3):
        reconciler.run_once()
    assert [state.id for state in ledger.jobs()] == ["good"]
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.getMessage().startswith("job bad is left alone")


@pytest.mark.usefixtures("_adopt_always")
def test_a_store_that_blinks_does_not_lose_a_job(
    store: Store, ledger: Ledger, permits: Permits, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_job(store)
    real, failures = Store.exists, [StoreUnavailableError("away")]

    def exists(self: Store, path: str) -> bool:
        if failures:
            raise failures.pop()
        return real(self, path)

    monkeypatch.setattr(Store, "exists", exists)
    reconciler = Reconciler(store, ledger, permits, "me")
    with pytest.raises(StoreUnavailableError):
        reconciler.run_once()
    reconciler.run_once()
    assert [state.id for state in ledger.jobs()] == ["job"]


def test_the_store_is_not_listed_at_every_round(store: Store, ledger: Ledger, reconciler: Reconciler) -> None:
    reconciler.run_once()
    accept_job(store)
    reconciler.run_once()
    assert ledger.jobs() == []


# -- Permits.


def test_a_stalled_queue_gets_a_permit_for_each_free_slot(
    store: Store, ledger: Ledger, reconciler: Reconciler, queued: Callable[[], int]
) -> None:
    ledger.accept(accept_job(store, rows=40, batch_size=4))
    ledger.register(worker_info("w1", slots=2))
    ledger.register(worker_info("w2", slots=3))
    reconciler.run_once()
    assert queued() == 5


def test_there_are_never_more_permits_than_claimable_batches(
    store: Store,
    ledger: Ledger,
    reconciler: Reconciler,
    queued: Callable[[], int],
    redis_server: Any,
    sweep_s_passes: Callable[[], None],
) -> None:
    job = accept_job(store, rows=12, batch_size=4)
    ledger.accept(job)
    ledger.register(worker_info("w1", slots=100))
    for _ in range(4):
        reconciler.run_once()
    assert queued() == 3
    do_batches(store, ledger, job, 2)
    redis_server.client.delete(reconciler.permits.queue_key("tiny"))
    sweep_s_passes()
    for _ in range(4):
        reconciler.run_once()
    assert queued() == 1


def test_lost_permits_are_sent_again_but_not_while_claims_go_on(
    store: Store,
    ledger: Ledger,
    reconciler: Reconciler,
    queued: Callable[[], int],
    redis_server: Any,
    sweep_s_passes: Callable[[], None],
) -> None:
    ledger.accept(accept_job(store, rows=40, batch_size=4))
    reconciler.run_once()
    assert queued() == 1  # a worker may be about to register
    redis_server.client.delete(reconciler.permits.queue_key("tiny"))
    assert ledger.claim(worker_info()) is not None
    reconciler.run_once()
    assert queued() == 0
    sweep_s_passes()
    reconciler.run_once()
    assert queued() == 1


def test_nothing_to_do_sends_no_permits(
    store: Store, ledger: Ledger, reconciler: Reconciler, queued: Callable[[], int]
) -> None:
    ledger.accept(accept_job(store))
    ledger.pause("job")
    ledger.register(worker_info())
    reconciler.run_once()
    assert queued() == 0


def test_a_forgotten_finalization_gets_a_permit(
    store: Store,
    ledger: Ledger,
    reconciler: Reconciler,
    queued: Callable[[], int],
    sweep_s_passes: Callable[[], None],
) -> None:
    job = accept_job(store, rows=4, batch_size=4)
    ledger.accept(job)
    do_batches(store, ledger, job, 1)  # and the worker died before it sent one
    sweep_s_passes()
    reconciler.run_once()
    assert queued() == 1


# -- Time.


def test_a_deadline_fires_and_is_noted_in_the_store_also_while_paused(
    store: Store, ledger: Ledger, reconciler: Reconciler
) -> None:
    ledger.accept(accept_job(store, deadline=now() - timedelta(seconds=1)))
    ledger.pause("job")
    sweep = reconciler.run_once()
    assert sweep is not None
    assert sweep.expired == ["job"]
    assert store.exists(layout.expired_file("job"))
    claim = ledger.claim(worker_info())
    assert claim is not None
    assert (claim.kind, claim.ending) == (FINALIZE, Status.EXPIRED)


def test_a_batch_whose_lease_expired_goes_back(
    store: Store, ledger: Ledger, reconciler: Reconciler, redis_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ledger.accept(accept_job(store, rows=8, batch_size=4))
    assert len(claims(ledger)) == 2
    redis_server.client.zadd(keys.key(ledger.store_id, "leases"), {"job:1": 1.0}, xx=True)
    sweep = reconciler.run_once()
    assert sweep is not None
    assert sweep.returned == [("job", 1)]
    assert "the lease of batch 1 expired" in caplog.text
    assert claims(ledger) == [("job", 1)]


def test_one_sweeps_at_a_time(
    store: Store,
    ledger: Ledger,
    permits: Permits,
    reconciler: Reconciler,
    sweep_s_passes: Callable[[], None],
) -> None:
    assert reconciler.run_once() is not None
    assert Reconciler(store, ledger, permits, "another").run_once() is None
    sweep_s_passes()
    assert Reconciler(store, ledger, permits, "another").run_once() is not None


def test_a_redis_that_forgot_everything_learns_it_again(
    store: Store, ledger: Ledger, reconciler: Reconciler, redis_server: Any, queued: Callable[[], int]
) -> None:
    job = accept_job(store)
    ledger.accept(job)
    do_batches(store, ledger, job, 1)
    redis_server.client.flushall()
    reconciler.run_once()
    assert queued() >= 1
    assert len(claims(ledger)) == 2


def test_one_of_a_fleet_recovers_and_the_others_leave_it_alone(
    store: Store, ledger: Ledger, permits: Permits, reconciler: Reconciler, redis_server: Any
) -> None:
    accept_job(store)
    redis_server.client.flushall()
    other = Reconciler(store, ledger, permits, "another")
    assert ledger.begin_recover("me")
    assert other.run_once() is None
    assert ledger.jobs() == []
    assert reconciler.run_once() is not None
    assert [state.id for state in ledger.jobs()] == ["job"]


def test_a_recovery_that_died_is_taken_over(
    store: Store, ledger: Ledger, reconciler: Reconciler, redis_server: Any
) -> None:
    accept_job(store)
    redis_server.client.flushall()
    assert ledger.begin_recover("a dead one")
    lock = keys.key(ledger.store_id, "recovering")
    assert 0 < redis_server.client.ttl(lock) <= 60
    redis_server.client.delete(lock)
    assert reconciler.run_once() is not None
    assert not ledger.needs_recover()
    assert not redis_server.client.exists(lock)
