"""From parts to the dataset: whole and once, or not at all."""

from __future__ import annotations

import hashlib
from unittest.mock import patch

import orjson
import pyarrow as pa
import pytest
from finalize_work import keys_of, manifest, snapshot

from jobs import layout
from jobs.errors import DamagedFileError
from jobs.finalize import (
    MissingPartsError,
    finalize,
    manifest_counts,
)
from jobs.inputs import lost_batch, read_input, unrun_batch
from jobs.parts import commit_part, list_parts
from jobs.results import PartCounts, ResultRow, part_counts, read_part, result_schema, write_part
from jobs.spec import Status
from jobs.store import Store
from tests.job_work import (
    accept_job,
    dataset,
    flipped,
    memory_store,
    ok_row,
    part_bytes,
    run_batches,
)


@pytest.fixture
def store() -> Store:
    return memory_store()


# -- What comes out.


def test_a_completed_job_has_every_row_once_in_order(store: Store) -> None:
    job = accept_job(store, rows=10, batch_size=4, n=2)
    run_batches(store, job, [2, 0, 1])
    counts = finalize(store, job, Status.COMPLETED)
    table = dataset(store, job.id)
    assert keys_of(table) == [(row, sample) for row in range(10) for sample in range(2)]
    assert table.column("text").to_pylist() == [f"text {row}.{sample}" for row in range(10) for sample in range(2)]
    assert table.column("sku").to_pylist() == [f"{row:03d}" for row in range(10) for _ in range(2)]
    assert table.schema.equals(result_schema(job.columns))
    assert counts == PartCounts(completed=20, prompt_tokens=30, completion_tokens=100)


def test_the_manifest_says_what_the_dataset_holds(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    counts = finalize(store, job, Status.COMPLETED)
    found = manifest(store, job)
    assert (found["job"], found["status"], found["digest"]) == (job.id, "completed", job.digest)
    assert found["rows"] == {"total": 10, "completed": 10, "failed": 0, "cancelled": 0, "expired": 0}
    assert found["tokens"] == {"prompt": 30, "completion": 50}
    assert manifest_counts(store, job.id) == counts
    (entry,) = found["files"]
    content = store.get(f"{layout.results_prefix(job.id)}/{entry['path']}")
    assert (entry["rows"], entry["bytes"]) == (10, len(content))
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_the_manifest_says_what_the_rows_cost(store: Store) -> None:
    job = accept_job(store, rows=10, batch_size=4, n=2)
    for batch in range(job.batches):
        rows = [ok_row(index, sample) for index in job.batch_rows(batch) for sample in range(2)]
        for row in rows:
            row.computed_prompt_tokens, row.shared_prompt_tokens = 10 - row.sample_index, row.sample_index
            row.repeated = row.row_index == 9
        own = pa.table({"sku": [f"{index:03d}" for index in job.batch_rows(batch)]})
        commit_part(store, job, batch, write_part(rows, own, job.columns, job.batch_rows(batch).start))
    counts = finalize(store, job, Status.COMPLETED)
    assert manifest(store, job)["engine"] == {
        "computed_prompt_tokens": 10 * 10 + 10 * 9, "shared_prompt_tokens": 10, "repeated_rows": 2,
    }  # fmt: skip
    assert (counts.computed_prompt_tokens, counts.shared_prompt_tokens, counts.repeated_rows) == (190, 10, 2)


def test_a_manifest_of_an_earlier_version_has_no_costs(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    finalize(store, job, Status.COMPLETED)
    found = manifest(store, job)
    del found["engine"]
    other = memory_store()
    other.put_if_absent(layout.manifest_file(job.id), orjson.dumps(found))
    assert manifest_counts(other, job.id) == PartCounts(completed=10, prompt_tokens=30, completion_tokens=50)


def test_parts_are_removed_after_success_and_the_input_stays(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    finalize(store, job, Status.COMPLETED)
    assert store.get(layout.success_file(job.id)) == b""
    assert list_parts(store, job.stage) == {}
    assert store.exists(layout.input_batch(job.stage, 0))


def test_finalizing_again_changes_nothing_and_removes_what_was_left(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    counts = finalize(store, job, Status.COMPLETED)
    before = snapshot(store, job)
    run_batches(store, job, [1])  # of a worker that had been cut off
    assert finalize(store, job, Status.CANCELLED) == counts
    assert snapshot(store, job) == before
    assert list_parts(store, job.stage) == {}


@pytest.mark.parametrize("ending", [Status.CANCELLED, Status.EXPIRED])
def test_rows_that_nobody_ran_end_as_the_job_did(store: Store, ending: Status) -> None:
    job = accept_job(store, rows=10, batch_size=4, n=2)
    run_batches(store, job, [1])
    counts = finalize(store, job, ending)
    table = dataset(store, job.id)
    assert keys_of(table) == [(row, sample) for row in range(10) for sample in range(2)]
    assert table.column("status").to_pylist() == [str(ending)] * 8 + ["ok"] * 8 + [str(ending)] * 4
    assert table.column("custom_id").to_pylist() == [f"row-{row}" for row in range(10) for _ in range(2)]
    assert table.column("sku").to_pylist() == [f"{row:03d}" for row in range(10) for _ in range(2)]
    assert (counts.rows, counts.completed, getattr(counts, ending)) == (20, 8, 12)
    assert manifest(store, job)["status"] == ending


@pytest.mark.parametrize("damage", ["gone", "cut", "another's"])
def test_rows_whose_input_is_lost_say_so(store: Store, damage: str) -> None:
    job = accept_job(store, rows=10, batch_size=4, n=2)
    path = layout.input_batch(job.stage, 2)
    content = store.get(path)
    store.delete([path])
    if damage == "cut":
        store.put_if_absent(path, content[:-50])
    elif damage == "another's":
        store.put_if_absent(path, store.get(layout.input_batch(job.stage, 0)))
    counts = finalize(store, job, Status.CANCELLED)
    # Their n cannot be read any more: one row each.
    assert keys_of(dataset(store, job.id))[-2:] == [(8, 0), (9, 0)]
    assert (counts.cancelled, counts.failed, counts.errors) == (16, 2, {"input_lost": 2})


def test_a_lost_batch_is_error_rows_that_name_the_reason(store: Store) -> None:
    job = accept_job(store)
    content = lost_batch(store, job, 2, "the disk ate it" + "!" * 1_000)
    rows = read_part(content).to_pylist()
    assert [row["row_index"] for row in rows] == [8, 9]
    assert {(row["status"], row["error_code"], row["sku"]) for row in rows} == {("error", "input_lost", None)}
    assert rows[0]["error_message"].startswith("the disk ate it")
    assert part_counts(content).errors == {"input_lost": 2}


def test_an_unrun_batch_has_the_samples_that_each_row_asked_for(store: Store) -> None:
    job = accept_job(store, n=3)
    rows = read_part(unrun_batch(job, 0, read_input(store, job, 0), "expired")).to_pylist()
    assert [(row["row_index"], row["sample_index"]) for row in rows] == [(r, s) for r in range(4) for s in range(3)]
    assert {row["status"] for row in rows} == {"expired"}


def test_all_batches_but_the_last_are_full(store: Store) -> None:
    job = accept_job(store, rows=10, batch_size=4)
    assert [job.batch_rows(batch) for batch in range(3)] == [range(0, 4), range(4, 8), range(8, 10)]


# -- What is refused.


def test_a_completed_job_without_all_parts_names_the_batches_and_publishes_nothing(store: Store) -> None:
    job = accept_job(store, rows=20, batch_size=4)
    run_batches(store, job, [0, 2, 4])
    with pytest.raises(MissingPartsError) as raised:
        finalize(store, job, Status.COMPLETED)
    assert raised.value.batches == [1, 3]
    assert list(store.list(layout.results_prefix(job.id))) == []


@pytest.mark.parametrize("position", [100, -100])
def test_a_part_that_went_bad_is_missing_and_set_aside(store: Store, position: int) -> None:
    job = accept_job(store)
    parts = run_batches(store, job)
    content = store.get(parts[1].path)
    store.delete([parts[1].path])
    store.put_if_absent(parts[1].path, flipped(content, position % len(content)))
    with pytest.raises(MissingPartsError) as raised:
        finalize(store, job, Status.COMPLETED)
    assert raised.value.batches == [1]
    run_batches(store, job, [1])
    assert finalize(store, job, Status.COMPLETED).completed == 10
    assert len(set(keys_of(dataset(store, job.id)))) == 10


def test_a_part_that_goes_bad_between_two_looks_is_missing_and_set_aside(store: Store) -> None:
    job = accept_job(store, rows=10, batch_size=4)
    run_batches(store, job)
    path = layout.part(job.stage, 1)
    content = store.get(path)
    put = store.put_if_absent

    def damage(name: str, plan: bytes) -> bool:
        won = put(name, plan)
        if name == layout.plan_file(job.stage):
            store.delete([path])
            put(path, content[:-50])
        return won

    with patch.object(store, "put_if_absent", damage), pytest.raises(MissingPartsError) as caught:
        finalize(store, job, Status.COMPLETED)
    assert (caught.value.batches, caught.value.counts.rows) == ([1], 6)
    assert store.exists(layout.damaged_part(job.stage, 1))
    assert not store.exists(layout.success_file(job.id))


def test_parts_that_do_not_add_up_to_the_accepted_rows_are_refused(store: Store) -> None:
    job = accept_job(store, rows=10, batch_size=4)
    run_batches(store, job, [1, 2])
    rows = [ResultRow(row, sample, None, "ok") for row, sample in [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1)]]
    wrong = write_part(rows, pa.table({}), job.columns, 0)
    commit_part(store, job, 0, wrong)
    with pytest.raises(DamagedFileError, match="rows where 10 were accepted"):
        finalize(store, job, Status.COMPLETED)
    assert not store.exists(layout.success_file(job.id))


def test_a_result_file_with_other_rows_than_planned_is_refused(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    store.put_if_absent(layout.results_file(job.id, 0), part_bytes(job, 0))
    with pytest.raises(DamagedFileError, match="holds 4 rows where 10 were planned"):
        finalize(store, job, Status.COMPLETED)
    assert not store.exists(layout.success_file(job.id))


@pytest.mark.parametrize(
    "files",
    [
        [],
        [{"first": 0, "last": 1, "rows": 8}],
        [{"first": 0, "last": 2, "rows": 10}, {"first": 2, "last": 2, "rows": 2}],
        [{"first": 1, "last": 2, "rows": 6}, {"first": 0, "last": 0, "rows": 4}],
        [{"first": 0, "last": 99, "rows": 10}],
    ],
)
def test_a_stored_plan_that_does_not_hold_each_batch_once_publishes_nothing(
    store: Store, files: list[dict[str, int]]
) -> None:
    job = accept_job(store, rows=10, batch_size=4)
    run_batches(store, job)
    store.put_if_absent(layout.plan_file(job.stage), orjson.dumps({"files": files}))
    with pytest.raises(DamagedFileError, match="does not hold each of 3 batches once, in order"):
        finalize(store, job, Status.COMPLETED)
    assert list(store.list(layout.results_prefix(job.id))) == []
    assert len(list(store.list(f"{layout.stage_prefix(job.stage)}/parts"))) == 3


@pytest.mark.parametrize("content", [b"{", b'{"rows": {"completed": 9, "failed": 0, "cancelled": 0, "expired": 0}, '
                                           b'"tokens": {"prompt": 1, "completion": 1}, "errors": {}}'])  # fmt: skip
def test_there_is_no_success_beside_a_manifest_that_says_otherwise(store: Store, content: bytes) -> None:
    job = accept_job(store, rows=10)
    run_batches(store, job)
    store.put_if_absent(layout.manifest_file(job.id), content)
    with pytest.raises(DamagedFileError, match=r"_manifest\.json"):
        finalize(store, job, Status.COMPLETED)
    assert not store.exists(layout.success_file(job.id))


def test_success_without_a_manifest_is_damage(store: Store) -> None:
    job = accept_job(store)
    store.put_if_absent(layout.success_file(job.id), b"")
    with pytest.raises(DamagedFileError, match="_SUCCESS is there, and its manifest is not"):
        finalize(store, job, Status.COMPLETED)


def test_success_without_a_readable_manifest_is_damage(store: Store) -> None:
    job = accept_job(store)
    store.put_if_absent(layout.success_file(job.id), b"")
    for content in (b"{", b"[]", b'{"rows": {}}'):
        store.delete([layout.manifest_file(job.id)])
        store.put_if_absent(layout.manifest_file(job.id), content)
        with pytest.raises(DamagedFileError, match=r"_manifest\.json"):
            finalize(store, job, Status.COMPLETED)


def test_a_finalizer_stops_as_soon_as_its_lease_is_lost(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)

    def lost() -> None:
        raise TimeoutError("lease lost")

    with pytest.raises(TimeoutError):
        finalize(store, job, Status.COMPLETED, alive=lost)
    assert list(store.list(layout.results_prefix(job.id))) == []
