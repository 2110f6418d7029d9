"""Files of the right size, whatever dies between two of them and whoever else tries."""

from __future__ import annotations

import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
from finalize_work import keys_of, manifest, put_plan, snapshot
from hypothesis import given
from hypothesis import strategies as st

from jobs import layout
from jobs.finalize import (
    PlannedFile,
    finalize,
    plan_files,
)
from jobs.job_file import JobFile
from jobs.parts import Part, list_parts
from jobs.results import PartCounts
from jobs.spec import Status
from jobs.store import Store
from tests.job_work import (
    Death,
    MortalStore,
    accept_job,
    dataset,
    memory_store,
    run_batches,
)


@pytest.fixture
def store() -> Store:
    return memory_store()


# -- Files of the right size.


def part(batch: int, size: int, rows: int = 1) -> Part:
    return Part(batch, f"part-{batch}", PartCounts(completed=rows), size)


def test_a_file_ends_before_the_part_that_would_take_it_over_the_target() -> None:
    parts = [part(batch, size) for batch, size in enumerate([40, 60, 1, 99, 100, 250, 10])]
    assert plan_files(parts, target=100) == [
        PlannedFile(0, 1, 2), PlannedFile(2, 3, 2), PlannedFile(4, 4, 1), PlannedFile(5, 5, 1), PlannedFile(6, 6, 1),
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9)), min_size=1), st.integers(1, 500))
def test_a_plan_covers_every_batch_once_in_order(shapes: list[tuple[int, int]], target: int) -> None:
    parts = [part(batch, size, rows) for batch, (size, rows) in enumerate(shapes)]
    files = plan_files(parts, target)
    assert [batch for file in files for batch in range(file.first, file.last + 1)] == list(range(len(parts)))
    for file in files:
        members = parts[file.first : file.last + 1]
        assert file.rows == sum(member.counts.rows for member in members)
        assert sum(member.size for member in members) <= target or len([m for m in members if m.size]) == 1


def test_a_stored_plan_is_followed_into_several_files(store: Store) -> None:
    job = accept_job(store, rows=20, batch_size=4)
    run_batches(store, job)
    put_plan(store, job, (0, 1, 8), (2, 2, 4), (3, 4, 8))
    finalize(store, job, Status.COMPLETED)
    files = manifest(store, job)["files"]
    assert [(file["path"], file["rows"]) for file in files] == [
        ("data-00000.parquet", 8), ("data-00001.parquet", 4), ("data-00002.parquet", 8),
    ]  # fmt: skip
    assert [row for row, _ in keys_of(dataset(store, job.id))] == list(range(20))


def test_many_small_parts_become_few_row_groups(store: Store) -> None:
    job = accept_job(store, rows=200, batch_size=2)
    run_batches(store, job)
    finalize(store, job, Status.COMPLETED)
    metadata = pq.read_metadata(io.BytesIO(store.get(layout.results_file(job.id, 0))))
    assert [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)] == [128, 72]


# -- Crashes and company.


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("ending", [Status.COMPLETED, Status.CANCELLED])
def test_whenever_a_finalizer_dies_another_ends_with_the_same_dataset(ending: Status, after: bool) -> None:
    def prepared() -> tuple[Store, JobFile]:
        store = memory_store()
        job = accept_job(store, rows=10, batch_size=2, n=2)
        run_batches(store, job, None if ending == Status.COMPLETED else [0, 3])
        put_plan(store, job, (0, 1, 8), (2, 4, 12))
        return store, job

    store, job = prepared()
    counts = finalize(store, job, ending)
    expected, deaths = snapshot(store, job), 0
    for deadly in range(1, 100):
        store, job = prepared()
        try:
            finalize(MortalStore(store, deadly, after=after), job, ending)
            break
        except Death:
            deaths += 1
        if store.exists(layout.success_file(job.id)):
            assert snapshot(store, job) == expected
        assert finalize(store, job, ending) == counts
        assert snapshot(store, job) == expected
        assert list_parts(store, job.stage) == {}
    # The plan, two files, the manifest, _SUCCESS; five parts put or not, and removed.
    assert deaths >= 10


@pytest.mark.parametrize("ending", [Status.COMPLETED, Status.CANCELLED])
def test_two_finalizers_at_once_publish_one_dataset(ending: Status) -> None:
    for _ in range(5):
        store = memory_store()
        job = accept_job(store, rows=12, batch_size=2)
        run_batches(store, job, None if ending == Status.COMPLETED else [1, 4])
        put_plan(store, job, (0, 2, 6), (3, 5, 6))
        gate = threading.Barrier(3)

        def end(_: int, store: Store = store, job: JobFile = job, gate: threading.Barrier = gate) -> PartCounts:
            gate.wait()
            return finalize(store, job, ending)

        with ThreadPoolExecutor(3) as pool:
            counts = list(pool.map(end, range(3)))
        assert counts[0] == counts[1] == counts[2]
        table = dataset(store, job.id)
        assert [row for row, _ in keys_of(table)] == list(range(12))
        assert Counter(table.column("status").to_pylist())["ok"] == counts[0].completed
        names = sorted(item.path.rsplit("/", 1)[-1] for item in store.list(layout.results_prefix(job.id)))
        assert names == ["_SUCCESS", "_manifest.json", "data-00000.parquet", "data-00001.parquet"]


def test_a_finalizer_whose_parts_another_removed_takes_that_ones_dataset(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    calls = []

    def alive() -> None:
        calls.append(1)
        if len(calls) == 2:  # in the middle of looking for parts
            finalize(store, job, Status.COMPLETED)

    assert finalize(store, job, Status.COMPLETED, alive=alive).completed == 10
