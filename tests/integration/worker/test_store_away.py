"""A store that is away for a moment costs no job and no row; what is wrong for good ends the job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock, patch

import pytest

from jobs import ending, layout
from jobs.errors import RedisUnavailableError, StoreUnavailableError
from jobs.ledger import LeaseState
from jobs.spec import Status
from jobs.store import Store
from producer import submit as producer_submit
from worker import batch as worker_batch
from worker import context as worker_context
from worker.claims import run_claim, run_permit

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_context, "MAX_BACK_OFF_S", 0.0)


def root(bench: Bench) -> Path:
    folder = bench.store.root
    assert folder is not None
    return folder


def test_a_store_that_is_not_mounted_for_a_moment_fails_no_job(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(8))
    away = root(bench).with_name("away")
    root(bench).rename(away)
    root(bench).mkdir()
    assert not run_claim(worker)
    assert bench.state(job).status is Status.IN_PROGRESS
    root(bench).rmdir()
    away.rename(root(bench))

    assert bench.run(worker, job).status is Status.COMPLETED
    assert {row["status"] for row in bench.rows(job)} == {"ok"}


def test_a_job_whose_record_is_gone_for_good_has_failed(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(8))
    bench.store.delete([layout.job_file(job.id)])
    run_claim(worker)

    assert bench.state(job).status is Status.FAILED


def test_a_plan_that_cannot_be_read_fails_the_job_instead_of_going_round_for_ever(
    bench: Bench, prompts: Prompts
) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    bench.store.put_if_absent(layout.plan_file(bench.record(job).stage), b'{"files": [{"first"')

    assert bench.run(worker, job, claims=5).status is Status.FAILED


def test_a_finalization_that_fails_in_unforeseen_ways_is_given_up_at_the_third_attempt(
    bench: Bench, prompts: Prompts
) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    run_claim(worker)
    with patch.object(ending, "finalize", side_effect=ZeroDivisionError("unforeseen")):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run_claim(worker)
            assert bench.state(job).status is Status.FINALIZING
        run_claim(worker)

    state = bench.state(job)
    assert state.status is Status.FAILED
    assert "unforeseen" in (state.reason or "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoreUnavailableError("away")])
def test_a_submit_that_breaks_off_after_its_acceptance_keeps_the_input(
    bench: Bench, prompts: Prompts, error: BaseException
) -> None:
    put = bench.store.__class__.put_if_absent

    def put_then_break(store: Any, path: str, content: bytes, **options: bool) -> bool:
        won = put(store, path, content, **options)
        if layout.job_of_file(path) is not None:
            raise error
        return won

    with patch.object(bench.store.__class__, "put_if_absent", put_then_break), pytest.raises(type(error)):
        bench.submit(prompts(8))
    again = bench.submit(prompts(8))

    assert bench.run(bench.worker(), again).status is Status.COMPLETED
    assert {row["status"] for row in bench.rows(again)} == {"ok"}


def test_a_submit_that_breaks_off_before_its_acceptance_leaves_nothing(bench: Bench, prompts: Prompts) -> None:
    broken = patch.object(producer_submit.BatchBuilder, "digest", side_effect=KeyboardInterrupt)
    with broken, pytest.raises(KeyboardInterrupt):
        bench.submit(prompts(8))

    assert not list(bench.store.list("data"))


class TestAPartThatCannotBePut:
    """What was generated was paid for: it waits."""

    @pytest.fixture
    def full(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """A store that takes no part while the list has entries; each try takes one."""
        put, left = bench.store.__class__.put_if_absent, [True] * 3

        def put_or_refuse(store: Any, path: str, content: bytes, **options: bool) -> bool:
            if layout.batch_of_part(path) is not None and left:
                left.pop()
                raise StoreUnavailableError("no space left on device")
            return put(store, path, content, **options)

        monkeypatch.setattr(bench.store.__class__, "put_if_absent", put_or_refuse)
        monkeypatch.setattr(worker_batch, "_COMMIT_PAUSE_S", 0.01)
        return left

    def test_it_is_put_when_the_store_takes_it_and_no_row_is_generated_twice(
        self, bench: Bench, prompts: Prompts, full: list[bool], caplog: pytest.LogCaptureFixture
    ) -> None:
        worker, job = bench.worker(), bench.submit(prompts(4))
        assert run_claim(worker)
        assert full == []
        assert worker.engine.stats().rows == 4
        assert bench.run(worker, job).status is Status.COMPLETED
        assert {row["attempt"] for row in bench.rows(job)} == {1}
        assert caplog.text.count("waits to be committed: no space left on device") == 2

    def test_meanwhile_the_worker_claims_nothing_more(
        self, bench: Bench, prompts: Prompts, full: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker = bench.worker()
        bench.submit(prompts(4))
        seen: list[bool] = []
        commit = worker_batch.commit_part

        def look(*args: Any) -> Any:
            seen.append(worker.store_has_room())
            return commit(*args)

        monkeypatch.setattr(worker_batch, "commit_part", look)
        assert run_claim(worker)
        assert seen == [True, False, False, False]
        assert worker.store_has_room()

    def test_after_a_while_its_batch_goes_back(
        self, bench: Bench, prompts: Prompts, full: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(worker_batch, "_COMMIT_PATIENCE_S", 0.0)
        worker, job = bench.worker(), bench.submit(prompts(4))
        assert not run_claim(worker)
        assert (bench.state(job).running, bench.ledger.claimable("fake")) == (0, 1)

    def test_it_is_dropped_when_the_lease_is_lost(
        self, bench: Bench, prompts: Prompts, full: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker = bench.worker()
        bench.submit(prompts(4))
        commit = worker_batch.commit_part

        def lose(*args: Any) -> Any:
            for lease in worker.leases:
                lease.drop(LeaseState.LOST)
            return commit(*args)

        monkeypatch.setattr(worker_batch, "commit_part", lose)
        assert not run_claim(worker)
        assert len(full) == 2


def test_a_worker_claims_nothing_while_the_disk_of_the_store_is_as_good_as_full(
    bench: Bench, prompts: Prompts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker_context, "_DISK_LOOK_S", 0.0)
    worker, job = bench.worker(), bench.submit(prompts(4))
    free = bench.store.free_bytes()
    assert free is not None
    worker.settings = worker.settings.model_copy(update={"min_free_mb": free / 2**20 + 10_000})
    assert not worker.store_has_room()
    assert "no more claims: the disk of" in caplog.text
    threading.Timer(0.3, worker.draining.set).start()
    assert not run_claim(worker)
    assert bench.state(job).running == 0

    worker.draining.clear()
    worker.settings = worker.settings.model_copy(update={"min_free_mb": 1.0})
    assert bench.run(worker, job).status is Status.COMPLETED


def test_a_store_that_does_not_say_how_much_room_it_has_has_room(bench: Bench) -> None:
    worker = bench.worker()
    worker.store = Store.open("memory://", create=True)
    assert worker.store_has_room()


def test_a_redis_that_is_away_at_the_claim_costs_a_line_and_is_asked_again(
    bench: Bench, prompts: Prompts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker = bench.worker()
    monkeypatch.setattr(worker.ledger.__class__, "claim", Mock(side_effect=[RedisUnavailableError("away"), None]))
    run_permit(worker)
    assert [(record.getMessage(), record.exc_info) for record in caplog.records] == [("no claim: away", None)]
