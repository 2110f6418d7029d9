"""A deleted job leaves a tombstone and nothing else, wherever its deletion was cut short."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import layout
from jobs.deletion import clear_if_deleted, delete_job, remove_leftovers
from jobs.errors import UnknownJobError
from jobs.finalize import finalize
from jobs.records import is_deleted, note_expired, pin, read_job, wish_cancel
from jobs.spec import Status
from jobs.store import Store
from tests.job_work import Death, MortalStore, accept_job, memory_store, run_batches


@pytest.fixture
def forgotten() -> list[str]:
    """The jobs that the ledger was told to forget."""
    return []


def live_job(store: Store, job: str = "job") -> None:
    """A job with a file of each kind that a live one has."""
    run_batches(store, accept_job(store, job), [0])
    wish_cancel(store, job)
    note_expired(store, job)
    pin(store, job, "f1")


def ended_job(store: Store, job: str = "job") -> None:
    live_job(store, job)
    finalize(store, read_job(store, job), Status.CANCELLED)


def paths(store: Store) -> set[str]:
    return {item.path for item in store.list("")} - {layout.STORE_FILE}


@pytest.mark.parametrize("made", [live_job, ended_job])
def test_nothing_remains_but_the_tombstone(made: object, forgotten: list[str]) -> None:
    store = memory_store()
    live_job(store, "other")
    others = paths(store)
    (live_job if made is live_job else ended_job)(store)
    delete_job(store, "job", forgotten.append)

    assert paths(store) == {*others, layout.tombstone_file("job")}
    assert set(forgotten) == {"job"}
    with pytest.raises(UnknownJobError, match="it was deleted"):
        read_job(store, "job")


def test_its_folders_go_too(tmp_path: Path, forgotten: list[str]) -> None:
    store = Store.open(str(tmp_path), create=True)
    ended_job(store)
    delete_job(store, "job", forgotten.append)

    assert list((tmp_path / "results").iterdir()) == list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("after", [False, True])
def test_a_deletion_that_was_cut_short_is_completed_by_the_next(after: bool, forgotten: list[str]) -> None:
    for deadly in range(1, 100):
        store = memory_store()
        ended_job(store)
        try:
            delete_job(MortalStore(store, deadly, after=after), "job", forgotten.append)
            break
        except Death:
            pass
        delete_job(store, "job", forgotten.append)
        assert paths(store) == {layout.tombstone_file("job")}
    # The tombstone; the record, _SUCCESS, the manifest, a data file, the plan, three inputs, three marks.
    assert deadly > 12


def test_a_job_that_there_never_was_cannot_be_deleted(forgotten: list[str]) -> None:
    store = memory_store()
    with pytest.raises(UnknownJobError, match="no job 'nobody'"):
        delete_job(store, "nobody", forgotten.append)
    assert paths(store) == set()
    assert forgotten == []


def test_a_job_whose_record_is_damaged_can_be_deleted(forgotten: list[str]) -> None:
    store = memory_store()
    ended_job(store)
    store.delete([layout.job_file("job")])
    store.put_if_absent(layout.job_file("job"), b"{")
    delete_job(store, "job", forgotten.append)

    assert {path.split("/")[0] for path in paths(store)} == {"data", "jobs"}, "upkeep removes the stage that it named"
    assert is_deleted(store, "job")


def test_what_was_put_of_a_deleted_job_is_removed_by_upkeep_and_nothing_else(forgotten: list[str]) -> None:
    store = memory_store()
    for job in ("job", "other"):
        ended_job(store, job)
    delete_job(store, "job", forgotten.append)
    before = paths(store)
    assert remove_leftovers(store) == []
    for path in (layout.results_file("job", 0), layout.success_file("job"), layout.pin_file("job")):
        store.put_if_absent(path, b"late")
    store.put_if_absent(layout.results_file("unknown", 0), b"not ours to judge")

    assert remove_leftovers(store) == ["job"]
    assert paths(store) == {*before, layout.results_file("unknown", 0)}


def test_only_a_job_that_was_deleted_is_cleared(forgotten: list[str]) -> None:
    store = memory_store()
    ended_job(store)
    before = paths(store)
    assert not clear_if_deleted(store, "job", forgotten.append)
    assert not clear_if_deleted(store, "nobody", forgotten.append)
    assert paths(store) == before
    delete_job(store, "job", forgotten.append)
    store.put_if_absent(layout.results_file("job", 0), b"late")
    assert clear_if_deleted(store, "job", forgotten.append)
    assert paths(store) == {layout.tombstone_file("job")}
