"""Retry: only what failed is generated again, and the new job is whole, whatever becomes of its parent and Redis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from jobs import layout
from jobs.errors import DamagedFileError, InputError
from jobs.finalize import finalize
from jobs.inputs import read_input
from jobs.ledger import Release
from jobs.parts import commit_part, list_parts
from jobs.records import read_job, read_manifest
from jobs.recover import recover_job
from jobs.results import ResultRow, write_part
from jobs.spec import Retry, Status, default_seed
from producer import Job
from producer.retry import Retried
from tests.job_work import flipped
from worker.batch import run_claim

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]
Key = tuple[int, int]


def bad_at(rows: list[dict[str, Any]], *bad: int) -> list[Mapping[str, Any]]:
    """The rows with the word in some of them that has a fake engine fail."""
    return [{**row, "prompt": f"apple {row['prompt']}"} if at in bad else row for at, row in enumerate(rows)]


def failed_job(bench: Bench, rows: list[Mapping[str, Any]], **flags: Any) -> Job:
    """A job that has ended, in which the rows with an apple have failed."""
    job = bench.submit(rows, **flags)
    assert bench.run(bench.worker("w-first", fail_on="apple"), job).status is Status.COMPLETED
    return job


def ended_with(bench: Bench, rows: list[Mapping[str, Any]], statuses: Mapping[Key, str], **flags: Any) -> Job:
    """A job that has ended with these statuses, ``ok`` where none is given and the row is valid."""
    job = bench.submit(rows, **flags)
    record = bench.record(job)
    for batch in range(record.batches):
        source = read_input(bench.store, record, batch)
        made = [
            _row((prompt.row_index, sample), statuses.get((prompt.row_index, sample), "ok"), prompt.error_code)
            for prompt in source.prompts
            for sample in prompt.samples
        ]
        part = write_part(made, source.columns, record.columns, record.batch_rows(batch).start)
        commit_part(bench.store, record, batch, part)
    finalize(bench.store, record, Status.COMPLETED)
    assert not recover_job(bench.store, bench.ledger, job.id)
    return job


def _row(key: Key, status: str, invalid: str | None) -> ResultRow:
    if status == "error" or invalid is not None:
        return ResultRow(*key, None, "error", error_code=invalid or "numeric_error")
    good = {"text": f"good {key}", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 4, "seed": 5}
    values: dict[str, Any] = good if status == "ok" else {}
    return ResultRow(*key, None, status, **values)


def by_key(rows: list[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    return {(row["row_index"], row["sample_index"]): row for row in rows}


def retried(bench: Bench, job: Job, **flags: bool) -> Retried:
    from producer.retry import retry

    return retry(bench.client._connection, job.id, **flags)


def lineage(bench: Bench, job: Job) -> Retry:
    found = bench.record(job).retry
    assert found is not None
    return found


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


# -- What may go wrong meanwhile.


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
