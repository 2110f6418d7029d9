"""A permit through a worker: what it claims, what it sends on, and when it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobs.spec import Status
from worker.claims import run_claim, run_permit

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


def permits_of(bench: Bench) -> int:
    return bench.ledger.queue_length(bench.permits.queue_key("fake"))


def take_permits(bench: Bench) -> None:
    """As Celery does, in all slots of all workers."""
    bench.redis.delete(bench.permits.queue_key("fake"))


def test_one_permit_runs_all_batches_and_ends_the_job(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(10))
    run_permit(worker)

    assert bench.state(job).status is Status.COMPLETED
    assert [row["number"] for row in bench.rows(job)] == list(range(10))


def test_while_batches_remain_permits_wait_for_the_next_free_slots(bench: Bench, prompts: Prompts) -> None:
    worker = bench.worker()
    bench.submit(prompts(10))
    take_permits(bench)
    run_claim(worker)
    run_claim(worker)
    assert permits_of(bench) == 2, "two, so that their number doubles; a second claim leaves no more"
    take_permits(bench)
    run_claim(worker)

    assert permits_of(bench) == 1, "the one for the end of the job"


def test_a_claim_runs_one_batch(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(10))

    assert run_claim(worker)
    state = bench.state(job)
    assert (state.done, state.completed, state.running, state.batches) == (1, 4, 0, 3)
    assert bench.part(job, 0)["row_index"].to_pylist() == [0, 1, 2, 3]
    assert len(worker.leases) == 0


def test_the_last_batch_sends_the_permit_that_ends_the_job(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(10))
    for _ in range(2):
        run_claim(worker)
    take_permits(bench)
    run_claim(worker)
    assert bench.state(job).status is Status.FINALIZING
    assert permits_of(bench) == 1
    run_claim(worker)

    assert bench.state(job).status is Status.COMPLETED
    assert not run_claim(worker)


def test_a_permit_without_work_does_nothing(bench: Bench) -> None:
    run_permit(bench.worker())

    assert permits_of(bench) == 0


def test_a_draining_worker_claims_nothing(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    worker.draining.set()
    run_permit(worker)

    assert bench.state(job).done == bench.state(job).running == 0
