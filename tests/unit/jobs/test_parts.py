"""A batch has one part: the first that was committed and can be read."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs import layout
from jobs.job_file import JobFile
from jobs.parts import commit_part, find_part, list_parts
from jobs.store import Store
from tests.job_work import accept_job, flipped, memory_store, part_bytes, run_batches


@pytest.fixture
def store() -> Store:
    return memory_store()


@pytest.fixture
def job(store: Store) -> JobFile:
    return accept_job(store)


def overwrite(store: Store, path: str, content: bytes) -> None:
    """What a failing disk does."""
    store.delete([path])
    store.put_if_absent(path, content)


def test_a_batch_that_nobody_ran_has_no_part(store: Store, job: JobFile) -> None:
    assert find_part(store, job, 0) is None
    assert list_parts(store, job.stage) == {}


def test_a_committed_part_is_found_with_its_counts_and_size(store: Store, job: JobFile) -> None:
    content = part_bytes(job, 1)
    part = commit_part(store, job, 1, content)
    assert (part.batch, part.path, part.size) == (1, layout.part(job.stage, 1), len(content))
    assert part.counts.completed == 4
    assert find_part(store, job, 1) == part
    assert find_part(store, job, 0) is None


def test_the_second_writer_gets_the_counts_of_the_first(store: Store, job: JobFile) -> None:
    winner = commit_part(store, job, 0, part_bytes(job, 0))
    assert commit_part(store, job, 0, part_bytes(job, 1, text="another")) == winner
    assert store.get(winner.path) == part_bytes(job, 0)


def test_writers_at_once_all_get_the_same_part(store: Store, job: JobFile) -> None:
    gate = threading.Barrier(8)

    def commit(index: int) -> object:
        content = part_bytes(job, 0, text=f"worker {index}")
        gate.wait()
        return commit_part(store, job, 0, content)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(repr, pool.map(commit, range(8))))) == 1


@pytest.mark.parametrize("where", ["cut", "footer", "page", "empty"])
def test_a_damaged_part_is_set_aside_and_stays_as_it_is(store: Store, job: JobFile, where: str) -> None:
    (part,) = run_batches(store, job, [0])
    content = store.get(part.path)
    bad = {
        "cut": content[:-20], "footer": flipped(content, len(content) - 30),
        "page": flipped(content, 100), "empty": b"",
    }[where]  # fmt: skip
    overwrite(store, part.path, bad)
    assert find_part(store, job, 0) is None
    assert store.exists(layout.damaged_part(job.stage, 0))
    again = commit_part(store, job, 0, content)
    assert again.path == layout.part(job.stage, 0, 1)
    assert find_part(store, job, 0) == again
    assert store.get(part.path) == bad
    assert list_parts(store, job.stage) == {0: again.path}


def test_a_commit_on_top_of_a_damaged_part_makes_the_next_generation(store: Store, job: JobFile) -> None:
    for generation in range(2):
        store.put_if_absent(layout.part(job.stage, 0, generation), b"PAR1")
    part = commit_part(store, job, 0, part_bytes(job, 0))
    assert part.path == layout.part(job.stage, 0, 2)
    marked = [store.exists(layout.damaged_part(job.stage, 0, generation)) for generation in range(3)]
    assert marked == [True, True, False]


def test_the_rows_of_another_batch_are_damage(store: Store, job: JobFile) -> None:
    content = part_bytes(job, 1)
    store.put_if_absent(layout.part(job.stage, 0), content)
    assert find_part(store, job, 0) is None
    assert store.exists(layout.damaged_part(job.stage, 0))
    assert store.get(layout.part(job.stage, 0)) == content
    again = commit_part(store, job, 0, part_bytes(job, 0))
    assert again.path == layout.part(job.stage, 0, generation=1)


def test_parts_are_listed_by_batch_and_nothing_else_is(store: Store, job: JobFile) -> None:
    run_batches(store, job, [2, 0])
    store.put_if_absent(layout.damaged_part(job.stage, 1), b"")
    store.put_if_absent(layout.parts_prefix(job.stage) + "/notes.txt", b"")
    assert list(list_parts(store, job.stage)) == [0, 2]
