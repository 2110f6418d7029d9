"""A retry is whole, whatever becomes of its parent, its files and Redis meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobs import layout
from jobs.errors import DamagedFileError
from jobs.ledger import Release
from jobs.parts import list_parts
from jobs.recover import recover_job
from jobs.spec import Status
from producer import Job
from tests.job_work import flipped
from worker.claims import run_claim

if TYPE_CHECKING:
    from .conftest import Bench
from retry_work import Prompts, bad_at, by_key, ended_with, failed_job, retried


def test_it_survives_the_loss_of_redis(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(16), 1, 2, 6, 9))
    again = job.retry()
    worker = bench.worker()
    run_claim(worker)
    bench.redis.flushall()
    recover_job(bench.store, bench.ledger, again.id)
    state = bench.state(again)
    assert (state.done, state.completed, state.batches) == (2, 14, 4)
    state = bench.run(worker, again)

    assert (state.status, state.completed, state.total) == (Status.COMPLETED, 16, 16)


def test_a_deleted_parent_is_not_missed(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(10), 1, 9))
    before = bench.rows(job)
    first = job.retry()
    job.delete()
    bench.run(bench.worker(fail_on="apple"), first)
    assert bench.rows(first)[0] == before[0]
    second = first.retry()
    bench.run(bench.worker(), second)

    assert [row["status"] for row in bench.rows(second)] == ["ok"] * 10
    assert second.id == f"{job.id}-r2"


def test_a_cancelled_retry_keeps_what_was_carried_over(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(10), 1, 9))
    again = job.retry()
    again.cancel()
    rows = bench.rows(again)

    assert bench.state(again).status is Status.CANCELLED
    assert [row["row_index"] for row in rows if row["status"] == "cancelled"] == [1, 9]
    assert [row for row in rows if row["status"] == "ok"] == [row for row in bench.rows(job) if row["status"] == "ok"]


def test_input_that_is_lost_before_it_ran_loses_only_rows_that_were_to_be_generated(
    bench: Bench, prompts: Prompts
) -> None:
    statuses = {(1, 1): "error", (2, 0): "error", (2, 1): "error"}
    job = ended_with(bench, prompts(4), statuses, n=2)
    again = job.retry()
    bench.store.delete([layout.input_batch(bench.record(again).stage, 0)])
    state = bench.run(bench.worker(), again)
    rows = by_key(bench.rows(again))

    assert (state.status, state.completed, state.failed) == (Status.COMPLETED, 5, 3)
    assert {key for key, row in rows.items() if row["error_code"] == "input_lost"} == set(statuses)
    assert rows[1, 0] == by_key(bench.rows(job))[1, 0]


def test_rows_whose_input_is_gone_are_carried_over_and_told(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(8), 1, 6))
    path = layout.input_batch(bench.record(job).stage, 0)
    content = bench.store.get(path)
    bench.store.delete([path])
    bench.store.put_if_absent(path, flipped(content, len(content) // 2))
    done = retried(bench, job)
    assert done.job is not None
    again = Job(bench.client._connection, done.job.id)
    bench.run(bench.worker(), again)

    assert done.refused == {"internal_error": 1}
    assert [row["status"] for row in bench.rows(again)] == ["ok", "error"] + ["ok"] * 6
    assert bench.rows(again)[1] == bench.rows(job)[1]


def test_rows_whose_input_is_back_are_generated(bench: Bench, prompts: Prompts) -> None:
    job = bench.submit(prompts(2), n=2)
    path = layout.input_batch(bench.record(job).stage, 0)
    content = bench.store.get(path)
    bench.store.delete([path])
    bench.run(bench.worker(), job)
    assert [row["error_code"] for row in bench.rows(job)] == ["input_lost"] * 2
    assert job.retry() is job, "nobody can generate them"
    bench.store.put_if_absent(path, content)
    again = job.retry()
    bench.run(bench.worker(), again)

    assert [row["status"] for row in bench.rows(again)] == ["ok"] * 4


@pytest.mark.parametrize("fate", ["gone", "damaged", "another batch's"])
def test_rows_that_can_no_longer_be_carried_over_are_generated_again(bench: Bench, prompts: Prompts, fate: str) -> None:
    job = failed_job(bench, bad_at(prompts(8), 1, 6))
    again = job.retry()
    path, other = (layout.carried_batch(bench.record(again).stage, batch) for batch in (0, 1))
    content = bench.store.get(path)
    bench.store.delete([path])
    if fate != "gone":
        damaged = flipped(content, len(content) // 2) if fate == "damaged" else bench.store.get(other)
        bench.store.put_if_absent(path, damaged)
    state = bench.run(bench.worker("w-second"), again)
    rows = bench.rows(again)

    assert (state.status, state.completed) == (Status.COMPLETED, 8)
    assert [row["number"] for row in rows] == list(range(8))
    assert [row["worker"] for row in rows[:4]] == ["w-second"] * 4


def test_a_carried_part_that_is_damaged_before_the_end_is_generated_again(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(12), 1))
    again = job.retry()
    path = layout.part(bench.record(again).stage, 2)
    content = bench.store.get(path)
    bench.store.delete([path])
    bench.store.put_if_absent(path, flipped(content, len(content) // 2))
    worker = bench.worker("w-second")
    for _ in range(2):
        run_claim(worker)
    reopened = bench.state(again)
    assert (reopened.status, reopened.done, reopened.completed) == (Status.IN_PROGRESS, 2, 12)
    state = bench.run(worker, again)

    assert (state.status, state.completed, state.total) == (Status.COMPLETED, 12, 12)
    assert [row["worker"] for row in bench.rows(again)[8:]] == ["w-second"] * 4


def test_a_dataset_that_was_changed_is_not_carried_over(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(4), 1))
    path = layout.results_file(job.id, 0)
    content = bench.store.get(path)
    bench.store.delete([path])
    before = {item.path for item in bench.store.list("")}
    with pytest.raises(DamagedFileError, match="is not whole"):
        job.retry()
    assert {item.path for item in bench.store.list("")} == before, "its stage is removed"
    bench.store.put_if_absent(path, flipped(content, len(content) // 2))
    with pytest.raises(DamagedFileError, match="not what its manifest says"):
        job.retry()


def test_a_batch_that_costs_processes_is_generated_row_by_row(bench: Bench, prompts: Prompts) -> None:
    job = ended_with(bench, prompts(3), {(0, 1): "error", (2, 0): "error"}, n=2)
    again = job.retry()
    worker = bench.worker("w-second")
    for _ in range(3):
        claim = bench.ledger.claim(worker.info())
        assert claim is not None
        bench.ledger.release(again.id, 0, claim.token, Release.CRASHED)
    bench.run(worker, again)

    rows = by_key(bench.rows(again))
    assert [row["status"] for row in rows.values()] == ["ok"] * 6
    assert [key for key, row in rows.items() if row["worker"] == "w-second"] == [(0, 1), (2, 0)]


def test_rows_carried_over_are_removed_with_the_parts(bench: Bench, prompts: Prompts) -> None:
    again = failed_job(bench, bad_at(prompts(10), 1)).retry()
    stage = bench.record(again).stage
    assert list(bench.store.list(layout.carried_prefix(stage)))
    bench.run(bench.worker(), again)

    assert list(bench.store.list(layout.carried_prefix(stage))) == []
    assert list_parts(bench.store, stage) == {}
