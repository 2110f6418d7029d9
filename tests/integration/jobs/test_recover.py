"""What Redis has lost, the store brings back: no more and no less."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import jobs.parts
from jobs import layout
from jobs.errors import DamagedFileError, StoreUnavailableError, UnknownJobError
from jobs.finalize import finalize
from jobs.ledger import FINALIZE, JobState, Ledger
from jobs.records import note_expired, pin, wish_cancel
from jobs.recover import recover_all, recover_if_needed, recover_job
from jobs.spec import Status, now
from jobs.store import Store
from tests.job_work import accept_job, claims, do_batches, run_batches, worker_info


@pytest.fixture
def flush(redis_server: Any) -> Any:
    """Loses Redis whole."""
    return redis_server.client.flushall


def state(ledger: Ledger, job: str = "job") -> JobState:
    found = ledger.job(job)
    assert found is not None
    return found


def test_every_live_job_comes_back_and_no_finished_batch_is_run_again(store: Store, ledger: Ledger, flush: Any) -> None:
    job = accept_job(store, rows=20, batch_size=4, labels={"team": "a"}, priority=2)
    ledger.accept(job)
    done = do_batches(store, ledger, job, 2)
    before = state(ledger)
    flush()
    accept_job(store, "other", rows=8, batch_size=4)  # accepted while Redis was away
    assert ledger.needs_recover()
    found = recover_all(store, ledger)
    assert (sorted(found.restored), found.ended, found.damaged) == (["job", "other"], [], [])
    assert not ledger.needs_recover()
    after = state(ledger)
    for name in ("status", "completed", "total", "done", "batches", "prompt_tokens", "labels", "priority"):
        assert getattr(after, name) == getattr(before, name), name
    assert claims(ledger) == sorted(
        [("job", batch) for batch in range(5) if batch not in done] + [("other", 0), ("other", 1)]
    )


def test_a_job_whose_parts_are_all_in_only_waits_for_its_end(store: Store, ledger: Ledger, flush: Any) -> None:
    job = accept_job(store)
    run_batches(store, job)
    flush()
    recover_all(store, ledger)
    claim = ledger.claim(worker_info())
    assert claim is not None
    assert (claim.kind, claim.ending) == (FINALIZE, Status.COMPLETED)
    assert claims(ledger) == []


def test_ended_jobs_stay_ended(store: Store, ledger: Ledger, flush: Any) -> None:
    job = accept_job(store)
    run_batches(store, job)
    finalize(store, job, Status.COMPLETED)
    flush()
    found = recover_all(store, ledger)
    assert (found.restored, found.ended) == ([], ["job"])
    assert claims(ledger) == []
    assert list(store.list(layout.parts_prefix(job.stage))) == []


def test_a_job_that_ended_unknown_to_the_ledger_ends_there_too(store: Store, ledger: Ledger) -> None:
    job = accept_job(store)
    ledger.accept(job)
    do_batches(store, ledger, job, 1)
    finalize(store, job, Status.CANCELLED)  # by one that died before it could say so
    assert not recover_job(store, ledger, job.id)
    assert (state(ledger).status, state(ledger).completed, state(ledger).cancelled) == (Status.CANCELLED, 4, 6)
    assert claims(ledger) == []


@pytest.mark.parametrize(
    ("wish", "ending"), [(wish_cancel, Status.CANCELLED), (note_expired, Status.EXPIRED)], ids=["cancel", "expired"]
)
def test_the_wish_to_end_a_job_survives(store: Store, ledger: Ledger, flush: Any, wish: Any, ending: Status) -> None:
    job = accept_job(store)
    run_batches(store, job, [0])
    wish(store, job.id)
    flush()
    recover_all(store, ledger)
    assert state(ledger).status == Status.CANCELLING
    claim = ledger.claim(worker_info())
    assert claim is not None
    assert (claim.kind, claim.ending) == (FINALIZE, ending)


@pytest.mark.parametrize(
    ("wish", "ending"), [(wish_cancel, Status.CANCELLED), (note_expired, Status.EXPIRED)], ids=["cancel", "expired"]
)
def test_a_job_that_was_to_end_ends_so_although_all_its_parts_are_in(
    store: Store, ledger: Ledger, flush: Any, wish: Any, ending: Status
) -> None:
    job = accept_job(store)
    run_batches(store, job)
    wish(store, job.id)
    flush()
    recover_all(store, ledger)
    claim = ledger.claim(worker_info())
    assert claim is not None
    assert (claim.kind, claim.ending) == (FINALIZE, ending)


def test_a_job_stays_with_the_weights_that_began_it(store: Store, ledger: Ledger, flush: Any) -> None:
    job = accept_job(store)
    run_batches(store, job, [0])
    pin(store, job.id, "f1")
    flush()
    recover_all(store, ledger)
    assert state(ledger).fingerprint == "f1"
    assert ledger.claim(replace(worker_info(), fingerprint="f2")) is None
    assert claims(ledger) == [("job", 1), ("job", 2)]


def test_a_job_whose_pin_cannot_be_read_is_left_alone(store: Store, ledger: Ledger, flush: Any) -> None:
    job = accept_job(store)
    store.put_if_absent(layout.pin_file(job.id), b"{")
    flush()
    assert recover_all(store, ledger).damaged == ["job"]
    assert claims(ledger) == []


def test_only_the_footers_of_unknown_parts_are_looked_at(
    store: Store, ledger: Ledger, flush: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = accept_job(store)
    run_batches(store, job, [0, 1])
    flush()
    read: list[str] = []
    get = store.get
    monkeypatch.setattr(store, "get", lambda path: (read.append(path), get(path))[1])
    monkeypatch.setattr(jobs.parts, "read_part", lambda content: pytest.fail("a part was decoded"))
    for _ in range(2):
        recover_all(store, ledger)
    assert state(ledger).done == 2
    assert [path for path in read if "/parts/" in path] == [layout.part(job.stage, batch) for batch in (0, 1)]


def test_a_failed_job_goes_on_when_it_is_asked_for_and_only_then(store: Store, ledger: Ledger) -> None:
    job = accept_job(store)
    ledger.accept(job)
    do_batches(store, ledger, job, 1)
    ledger.fail(job.id, "the disk was full")
    found = recover_all(store, ledger)
    assert (found.restored, found.ended) == ([], ["job"])
    assert state(ledger).status == Status.FAILED
    assert recover_job(store, ledger, job.id, revive=True)
    found_state = state(ledger)
    assert (found_state.status, found_state.reason, found_state.done) == (Status.IN_PROGRESS, None, 1)
    assert claims(ledger) == [("job", 1), ("job", 2)]


def test_a_job_said_to_have_failed_whose_dataset_is_whole_has_not(store: Store, ledger: Ledger) -> None:
    job = accept_job(store)
    ledger.accept(job)
    run_batches(store, job)
    ledger.fail(job.id, "one finalizer of two")
    finalize(store, job, Status.COMPLETED)
    assert not recover_job(store, ledger, job.id)
    assert ledger.job(job.id) is None  # its manifest tells


def test_a_pause_and_a_changed_priority_are_lost(store: Store, ledger: Ledger, flush: Any) -> None:
    ledger.accept(accept_job(store))
    ledger.priority("job", 5)
    ledger.pause("job")
    flush()
    recover_all(store, ledger)
    assert (state(ledger).status, state(ledger).priority) == (Status.IN_PROGRESS, 0)


def test_a_deadline_that_passed_meanwhile_fires(store: Store, ledger: Ledger, flush: Any) -> None:
    accept_job(store, deadline=now() - timedelta(seconds=1))
    flush()
    recover_all(store, ledger)
    sweep = ledger.sweep("me")
    assert sweep is not None
    assert sweep.expired == ["job"]


def test_recovering_what_is_known_changes_nothing(store: Store, ledger: Ledger) -> None:
    job = accept_job(store, rows=20, batch_size=4)
    ledger.accept(job)
    do_batches(store, ledger, job, 2)
    held = ledger.claim(worker_info())
    assert held is not None
    ledger.priority("job", 3)
    ledger.pause("job")
    before = state(ledger)
    for _ in range(2):
        recover_all(store, ledger)
    after = state(ledger)
    for name in ("status", "priority", "completed", "completion_tokens", "done", "running"):
        assert getattr(after, name) == getattr(before, name), name
    ledger.resume("job")
    assert held.batch not in {batch for _, batch in claims(ledger)}


def test_a_part_that_cannot_be_read_is_run_again(store: Store, ledger: Ledger, flush: Any) -> None:
    job = accept_job(store)
    good, bad = run_batches(store, job, [0, 1])
    content = store.get(bad.path)
    store.delete([bad.path])
    store.put_if_absent(bad.path, content[:-40])
    flush()
    recover_all(store, ledger)
    assert (state(ledger).done, state(ledger).completed) == (1, good.counts.completed)
    assert claims(ledger) == [("job", 1), ("job", 2)]


def test_damaged_and_foreign_records_stop_nobody(store: Store, ledger: Ledger, flush: Any) -> None:
    accept_job(store, "good")
    store.put_if_absent(layout.job_file("bad"), b"{")
    store.put_if_absent("jobs/my notes.json", b"{}")
    store.put_if_absent(layout.tombstone_file("deleted"), b"{}")
    store.put_if_absent(layout.success_file("ended"), b"")
    flush()
    found = recover_all(store, ledger)
    assert (found.restored, found.ended, found.damaged) == (["good"], [], ["bad"])
    assert [job.id for job in ledger.jobs()] == ["good"]


@pytest.mark.parametrize("manifest", [None, b"{", b"[]", b'{"status": "odd"}', b'{"status": "completed"}'])
def test_an_ended_job_with_a_damaged_manifest_is_reported(store: Store, ledger: Ledger, manifest: bytes | None) -> None:
    job = accept_job(store)
    ledger.accept(job)
    store.put_if_absent(layout.success_file(job.id), b"")
    if manifest is not None:
        store.put_if_absent(layout.manifest_file(job.id), manifest)
    with pytest.raises(DamagedFileError, match=r"job\b"):
        recover_job(store, ledger, job.id)
    assert recover_all(store, ledger).damaged == ["job"]


def test_a_job_that_the_store_does_not_know_is_not_invented(store: Store, ledger: Ledger) -> None:
    with pytest.raises(UnknownJobError):
        recover_job(store, ledger, "nobody")
    assert ledger.jobs() == []


def test_a_recovery_is_done_once_and_said_once(
    store: Store, ledger: Ledger, flush: Any, caplog: pytest.LogCaptureFixture
) -> None:
    accept_job(store)
    flush()
    with caplog.at_level(logging.WARNING):
        recover_if_needed(store, ledger)
        recover_if_needed(store, ledger)
    (record,) = caplog.records
    assert "1 jobs were brought back" in record.getMessage()


def test_a_new_store_on_a_new_server_recovers_in_silence(
    store: Store, ledger: Ledger, flush: Any, caplog: pytest.LogCaptureFixture
) -> None:
    flush()
    recover_if_needed(store, ledger)
    assert not ledger.needs_recover()
    assert caplog.records == []


def test_a_store_that_is_gone_does_not_count_as_one_without_jobs(ledger: Ledger, tmp_path: Path, flush: Any) -> None:
    store = Store.open(str(tmp_path / "store"), create=True)
    flush()
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(StoreUnavailableError):
        recover_all(store, ledger)
    assert ledger.needs_recover()
