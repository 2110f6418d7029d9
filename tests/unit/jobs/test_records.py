"""The records of jobs in the store, and what people put beside them."""

from __future__ import annotations

import pytest

from jobs import layout
from jobs.errors import DamagedFileError, InputError, UnknownJobError
from jobs.records import has_ended, job_ids, note_expired, pin, pinned, read_job, read_manifest, wish_cancel
from jobs.store import Store
from tests.job_work import accept_job, memory_store


@pytest.fixture
def store() -> Store:
    return memory_store()


def test_a_job_is_read_as_it_was_accepted(store: Store) -> None:
    accepted = accept_job(store, "copy", labels={"team": "a"})
    assert read_job(store, "copy") == accepted


def test_an_unknown_job_is_said_with_the_store(store: Store) -> None:
    with pytest.raises(UnknownJobError, match=r"no job 'copy' in the store memory://"):
        read_job(store, "copy")


@pytest.mark.parametrize("job", ["", "../x", "a/b", "a.cancel"])
def test_no_path_is_ever_made_of_an_id_that_is_none(store: Store, job: str) -> None:
    with pytest.raises(InputError, match="job id"):
        read_job(store, job)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b"[1]"])
def test_a_damaged_record_is_said_by_its_place(store: Store, content: bytes) -> None:
    store.put_if_absent(layout.job_file("copy"), content)
    with pytest.raises(DamagedFileError, match=r"jobs/copy\.json"):
        read_job(store, "copy")


def test_a_record_that_was_copied_to_another_name_is_not_that_job(store: Store) -> None:
    job = accept_job(store, "copy")
    store.put_if_absent(layout.job_file("backup"), job.to_bytes())
    with pytest.raises(DamagedFileError, match="record of another job, 'copy'"):
        read_job(store, "backup")


def test_the_jobs_are_the_records_and_nothing_beside_them(store: Store) -> None:
    for job in ("a", "b", "c"):
        accept_job(store, job)
    wish_cancel(store, "a")
    note_expired(store, "b")
    pin(store, "c", "f1")
    store.put_if_absent(layout.tombstone_file("gone"), b"{}")
    store.put_if_absent("jobs/my notes.json", b"{}")
    assert sorted(job_ids(store)) == ["a", "b", "c"]


def test_a_wish_may_be_said_twice(store: Store) -> None:
    wish_cancel(store, "a")
    first = store.get(layout.cancel_file("a"))
    wish_cancel(store, "a")
    assert store.get(layout.cancel_file("a")) == first


def test_the_first_pin_of_a_job_holds(store: Store) -> None:
    assert pinned(store, "a") is None
    assert [pin(store, "a", weights) for weights in ("f1", "f2", "f1")] == ["f1", "f1", "f1"]
    assert pinned(store, "a") == "f1"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"fingerprint": 1}', b'{"fingerprint": ""}'])
def test_a_damaged_pin_is_said_by_its_place(store: Store, content: bytes) -> None:
    store.put_if_absent(layout.pin_file("a"), content)
    for look in (lambda: pinned(store, "a"), lambda: pin(store, "a", "f1")):
        with pytest.raises(DamagedFileError, match=r"jobs/a\.pin\.json"):
            look()


def test_a_job_has_ended_when_its_dataset_says_so(store: Store) -> None:
    store.put_if_absent(layout.manifest_file("a"), b'{"status": "completed"}')
    assert not has_ended(store, "a")
    assert read_manifest(store, "a") is None
    store.put_if_absent(layout.success_file("a"), b"")
    assert has_ended(store, "a")
    assert read_manifest(store, "a") == {"status": "completed"}


def test_a_dataset_without_a_readable_manifest_is_damaged(store: Store) -> None:
    store.put_if_absent(layout.success_file("a"), b"")
    with pytest.raises(DamagedFileError, match=r"_manifest\.json"):
        read_manifest(store, "a")
    store.put_if_absent(layout.manifest_file("a"), b"{")
    with pytest.raises(DamagedFileError, match=r"_manifest\.json"):
        read_manifest(store, "a")
