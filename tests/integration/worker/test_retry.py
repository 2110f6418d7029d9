"""Retry: only what failed is generated again, and is judged and charged alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from jobs import layout
from jobs.errors import InputError
from jobs.records import read_job, read_manifest
from jobs.spec import Status, default_seed
from producer import Job
from worker.claims import run_claim

if TYPE_CHECKING:
    from .conftest import Bench
from retry_work import Prompts, bad_at, by_key, ended_with, failed_job, lineage, retried

# -- What the new job holds.


def test_failed_rows_are_generated_again_and_the_others_carried_over_as_they_are(
    bench: Bench, prompts: Prompts
) -> None:
    job = failed_job(bench, bad_at(prompts(14), 1, 6, 7))
    before = bench.rows(job)
    again = job.retry()
    state = bench.run(bench.worker("w-second"), again)
    after = bench.rows(again)

    assert again.id == f"{job.id}-r1"
    assert (state.status, state.total, state.completed, state.failed) == (Status.COMPLETED, 14, 14, 0)
    assert [row["number"] for row in after] == list(range(14)), "in order, with the source's own columns"
    for old, new in zip(before, after, strict=True):
        if old["status"] == "ok":
            assert new == old
        else:
            assert (new["status"], new["worker"], new["custom_id"]) == ("ok", "w-second", old["custom_id"])
    assert bench.rows(job) == before


def test_only_batches_with_rows_to_generate_are_claimed(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(20), 9))
    again = job.retry()
    state = bench.state(again)

    assert (state.batches, state.done, state.completed, state.failed) == (5, 4, 19, 0)
    assert state.started_at is None, "what was carried over is no start"
    assert bench.ledger.claimable("fake") == 1
    worker = bench.worker()
    run_claim(worker)
    assert bench.state(again).status is Status.FINALIZING
    assert bench.state(again).completed == 20


def test_of_a_prompt_with_samples_only_those_that_failed_are_generated(bench: Bench, prompts: Prompts) -> None:
    job = ended_with(bench, prompts(3), {(1, 0): "error", (1, 2): "error"}, n=3, temperature=1.0)
    before = by_key(bench.rows(job))
    again = job.retry()
    bench.run(bench.worker("w-second"), again)
    after = by_key(bench.rows(again))

    assert list(after) == list(before)
    assert {key for key in after if after[key] != before[key]} == {(1, 0), (1, 2)}
    assert after[1, 0]["text"] != after[1, 2]["text"]


def test_a_row_has_the_seed_that_it_would_have_had(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(3), 1), temperature=1.0)
    first = job.retry()
    bench.run(bench.worker(fail_on="apple"), first)
    second = first.retry()
    bench.run(bench.worker(), second)

    assert [row["seed"] for row in bench.rows(second)] == [default_seed(job.id, index, 0) for index in range(3)]


def test_cancelled_and_expired_rows_are_retried_where_asked_and_else_carried_over(
    bench: Bench, prompts: Prompts
) -> None:
    statuses = {(0, 0): "cancelled", (1, 0): "expired", (2, 0): "error"}
    job = ended_with(bench, prompts(8), statuses)
    for flags, left, want in (
        ({}, {"cancelled": 1, "expired": 1}, ["cancelled", "expired", "ok"]),
        ({"cancelled": True}, {"expired": 1}, ["ok", "expired", "ok"]),
        ({"expired": True}, {"cancelled": 1}, ["cancelled", "ok", "ok"]),
        ({"cancelled": True, "expired": True}, {}, ["ok", "ok", "ok"]),
    ):
        done = retried(bench, job, **flags)
        assert done.left == left
        assert done.job is not None
        again = Job(bench.client._connection, done.job.id)
        assert bench.run(bench.worker(), again).status is Status.COMPLETED
        assert [row["status"] for row in bench.rows(again)[:3]] == want
    assert again.id == f"{job.id}-r4", "each is other work"


def test_rows_that_were_invalid_from_the_start_are_carried_over(bench: Bench, prompts: Prompts) -> None:
    rows = [*bad_at(prompts(6), 2), {"prompt": "", "number": 6}, {"prompt": "n", "n": "many", "number": 7}]
    job = failed_job(bench, rows, skip_invalid=True)
    done = retried(bench, job)
    assert done.job is not None
    again = Job(bench.client._connection, done.job.id)
    bench.run(bench.worker(), again)

    assert done.refused == {"empty_prompt": 1, "bad_parameters": 1}
    assert bench.rows(again)[6:] == bench.rows(job)[6:]
    assert [row["status"] for row in bench.rows(again)] == ["ok"] * 6 + ["error"] * 2


def test_what_failed_is_retried_where_invalid_rows_were_cancelled_before_they_could_fail(
    bench: Bench, prompts: Prompts
) -> None:
    rows = [*bad_at(prompts(4), 2), *({"prompt": "", "number": number} for number in range(4, 8))]
    job = bench.submit(rows, skip_invalid=True)
    run_claim(bench.worker(fail_on="apple"))
    job.cancel()
    first = job.retry()
    bench.run(bench.worker(fail_on="apple"), first)
    assert bench.record(first).invalid > bench.state(first).failed == 1
    second = first.retry()
    bench.run(bench.worker(), second)

    assert second.id == f"{job.id}-r2"
    assert [row["status"] for row in bench.rows(second)] == ["ok"] * 4 + ["cancelled"] * 4


@pytest.mark.parametrize("rows", [["a", "b"], ["a", ""]], ids=["all good", "all failures invalid"])
def test_where_nothing_can_be_retried_no_job_is_made(bench: Bench, rows: list[str]) -> None:
    job = failed_job(bench, [{"prompt": prompt} for prompt in rows], skip_invalid=True)
    before = {item.path for item in bench.store.list("")}
    done = retried(bench, job)

    assert done.job is None
    assert done.to_json(bench.store)["id"] == job.id
    assert done.refused == ({"empty_prompt": 1} if "" in rows else {})
    assert {item.path for item in bench.store.list("")} == before
    assert job.retry() is job


# -- Its lineage, and its name.


def test_its_lineage_is_in_the_job_file_the_status_and_the_manifest(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(10), 1, 9))
    first = job.retry()
    live = first.status()
    bench.run(bench.worker(fail_on="apple"), first)
    second = first.retry()
    bench.run(bench.worker(), second)
    manifest = read_manifest(bench.store, second.id)
    assert manifest is not None

    assert (lineage(bench, first).parent, lineage(bench, first).root) == (job.id, job.id)
    assert (lineage(bench, second).parent, lineage(bench, second).root) == (first.id, job.id)
    assert second.id == f"{job.id}-r2"
    assert (lineage(bench, second).retried, lineage(bench, second).carried.rows) == (2, 8)
    assert live.retry == lineage(bench, first)
    assert second.status().retry == lineage(bench, second)
    assert manifest["retry"] == lineage(bench, second).model_dump(mode="json")
    bench.ledger.forget(second.id)
    assert second.status().retry == lineage(bench, second), "of the store alone"


def test_the_same_retry_is_the_same_job_until_it_is_asked_for_again(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(6), 1))
    first = retried(bench, job)
    twin = retried(bench, job, again=True)
    assert (first.existed, twin.existed, twin.ended) == (False, True, False)
    assert first.job == twin.job
    assert first.job is not None
    bench.run(bench.worker(fail_on="apple"), Job(bench.client._connection, first.job.id))
    over, anew = retried(bench, job), retried(bench, job, again=True)

    assert (over.job, over.ended) == (first.job, True)
    assert anew.job is not None
    assert (anew.job.id, anew.existed) == (f"{job.id}-r2", False)
    stages = {layout.stage_of(item.path) for item in bench.store.list(layout.STAGES)}
    assert stages == {read_job(bench.store, name).stage for name in (job.id, first.job.id, anew.job.id)}


@pytest.mark.parametrize("known", [False, True], ids=["nothing", "the job without its parts"])
def test_what_a_killed_command_did_not_tell_the_ledger_the_same_command_tells_it(
    bench: Bench, prompts: Prompts, known: bool
) -> None:
    job = failed_job(bench, bad_at(prompts(10), 1))
    first = job.retry()
    bench.ledger.forget(first.id)
    if known:
        bench.ledger.restore(bench.record(first), {})
    again = job.retry()
    assert (again.id, bench.state(again).done) == (first.id, 2)
    state = bench.run(bench.worker(), again)

    assert (state.status, state.completed) == (Status.COMPLETED, 10)


def test_an_id_that_would_be_too_long_is_cut(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(2), 1), job_id="x" * 56)
    again = job.retry()

    assert again.id == "x" * 53 + "-r1"
    assert bench.run(bench.worker(), again).status is Status.COMPLETED


def test_a_job_that_has_not_ended_is_refused_with_what_to_do(bench: Bench, prompts: Prompts) -> None:
    job = bench.submit(prompts(4))
    with pytest.raises(InputError, match=r"has not ended: `promptmill watch .*` waits"):
        job.retry()
    bench.ledger.fail(job.id, "the disk was full")
    with pytest.raises(InputError, match=r"has failed and has no dataset: .*`promptmill recover"):
        job.retry()


# -- How it is judged and charged.


def test_a_retry_that_only_fails_pauses_itself_however_much_was_carried_over(bench: Bench, prompts: Prompts) -> None:
    rows = bad_at(prompts(1_300), *range(600, 1_000))
    rows[1_000:] = ({"prompt": "", "number": number} for number in range(1_000, 1_300))
    job = failed_job(bench, rows, batch_size=100, skip_invalid=True, max_error_rate=0.6)
    again = job.retry()
    worker = bench.worker(fail_on="apple")
    for _ in range(2):
        assert bench.state(again).status is Status.IN_PROGRESS
        run_claim(worker)
    state = bench.state(again)

    assert (state.status, state.completed, state.failed) == (Status.PAUSED, 600, 500)
    assert state.reason == "200 of 200 rows failed, most often with internal_error; the limit is a rate of 0.6"


def test_rows_that_failed_before_and_are_carried_over_do_not_pause_it(bench: Bench, prompts: Prompts) -> None:
    rows = [{**row, "prompt": ""} if at % 3 else row for at, row in enumerate(prompts(600))]
    failed = {(at, 0): "error" for at in range(0, 600, 3)}
    job = ended_with(bench, rows, failed, batch_size=200, skip_invalid=True)
    again = job.retry()
    state = bench.run(bench.worker(), again)

    assert (state.status, state.completed, state.failed) == (Status.COMPLETED, 200, 400)


def test_its_rate_and_its_share_are_those_of_what_it_generates(bench: Bench, prompts: Prompts) -> None:
    job = failed_job(bench, bad_at(prompts(40), 1, 6))
    again = job.retry()
    assert bench.record(again).batch_cost == 5.0, "one row of five tokens in each of two batches"
    run_claim(bench.worker())
    status = again.status()

    assert status.rows.completed == 39
    assert 0 < status.rate.rows_per_s <= 1.0, "one row was generated, and a rate looks at a second at least"
