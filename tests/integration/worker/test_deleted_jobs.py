"""A job is deleted while workers have it in hand: they drop it, go on with other work, and nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

import jobs.ending
from jobs import layout
from jobs.errors import JobConflictError, UnknownJobError
from jobs.reconcile import Reconciler
from jobs.recover import recover_all
from jobs.spec import Status
from jobs.store import Store
from producer import Job
from producer.status import list_jobs
from worker import batch as worker_batch
from worker.claims import run_claim

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


def assert_gone(bench: Bench, job: Job) -> None:
    """Nothing of ``job``, the only one of the store, is left in store or Redis."""
    left = {item.path for item in bench.store.list("")}
    assert left == {layout.STORE_FILE, layout.tombstone_file(job.id)}
    assert list(bench.redis.scan_iter(f"*{job.id}*")) == []


def test_a_waiting_job_is_gone_and_workers_find_nothing(bench: Bench, prompts: Prompts) -> None:
    job = bench.submit(prompts(10))
    job.delete()

    assert not run_claim(bench.worker())
    assert_gone(bench, job)


@pytest.mark.parametrize("moment", ["generate", "_commit", "_finish"])
def test_a_worker_that_has_a_batch_in_hand_drops_it_and_goes_on(bench: Bench, prompts: Prompts, moment: str) -> None:
    worker, job = bench.worker(), bench.submit(prompts(10))
    original = getattr(worker_batch, moment)

    def deleted(*args: Any) -> Any:
        with patch.object(worker_batch, moment, original):
            job.delete()
            return original(*args)

    with patch.object(worker_batch, moment, deleted):
        run_claim(worker)
    assert_gone(bench, job)
    other = bench.submit([{"prompt": "another"}])
    assert bench.run(worker, other).status is Status.COMPLETED


@pytest.mark.parametrize("after", [False, True])
def test_a_finalizer_that_has_it_in_hand_leaves_no_dataset(bench: Bench, prompts: Prompts, after: bool) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    run_claim(worker)
    original = jobs.ending.finalize

    def deleted(*args: Any, **kwargs: Any) -> Any:
        if not after:
            job.delete()
        kwargs["published"] = lambda counts: job.delete() if after else None
        return original(*args, **kwargs)

    with patch.object(jobs.ending, "finalize", deleted):
        run_claim(worker)

    assert_gone(bench, job)


@pytest.mark.parametrize("path", [layout.plan_file, layout.manifest_file, layout.success_file])
def test_a_finalizer_that_is_between_two_puts_leaves_no_dataset(
    bench: Bench, prompts: Prompts, path: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    run_claim(worker)
    name = path(bench.record(job).stage if path is layout.plan_file else job.id)
    original = Store.put_if_absent

    def deleted(store: Store, place: str, content: bytes) -> bool:
        if place == name:
            with patch.object(Store, "put_if_absent", original):
                job.delete()
        return original(store, place, content)

    with patch.object(Store, "put_if_absent", deleted):
        run_claim(worker)

    assert_gone(bench, job)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_ledger_that_still_knows_it_forgets_it_at_the_next_claim(bench: Bench, prompts: Prompts) -> None:
    job = bench.submit(prompts(4))
    record = bench.record(job)
    job.delete()
    bench.ledger.restore(record, {})  # as one that was recovering meanwhile would
    assert list_jobs(bench.client._connection) == ([], [])
    worker = bench.worker()
    run_claim(worker)

    assert_gone(bench, job)
    assert not run_claim(worker)


def test_nobody_brings_it_back(bench: Bench, prompts: Prompts) -> None:
    job = bench.submit(prompts(4))
    job.delete()
    recover_all(bench.store, bench.ledger)
    Reconciler(bench.store, bench.ledger, bench.permits, "me").run_once()

    assert_gone(bench, job)
    with pytest.raises(UnknownJobError, match="it was deleted"):
        job.status()


def test_its_id_is_not_used_again_and_its_work_is_only_on_request(bench: Bench, prompts: Prompts) -> None:
    job = bench.submit(prompts(4))
    job.delete()
    with pytest.raises(JobConflictError, match="was used by a job that is deleted"):
        bench.submit(prompts(4))
    again = bench.submit(prompts(4), again=True)

    assert again.id == f"{job.id}-2"
    assert bench.run(bench.worker(), again).status is Status.COMPLETED
