"""The end of a job whose parts went bad after their batches were done."""

from __future__ import annotations

import pytest

from jobs import layout
from jobs.ending import end_job
from jobs.job_file import JobFile
from jobs.ledger import Ledger
from jobs.parts import find_part
from jobs.permits import Permits
from jobs.results import PartCounts
from jobs.spec import Status
from jobs.store import Store
from tests.job_work import accept_job, dataset, do_batches, flipped, part_bytes, worker_info


def alive() -> None:
    """Nothing stops this finalizer."""


@pytest.fixture
def job(store: Store, ledger: Ledger) -> JobFile:
    """Three batches, all done, their parts in the store."""
    record = accept_job(store)
    ledger.accept(record)
    do_batches(store, ledger, record, record.batches)
    return record


def damage(store: Store, path: str) -> None:
    content = flipped(store.get(path), 100)
    store.delete([path])
    store.put_if_absent(path, content)


def end(store: Store, ledger: Ledger, permits: Permits) -> None:
    claim = ledger.claim_finalize()
    assert claim is not None
    end_job(store, ledger, permits, claim, alive)


def test_a_part_that_was_damaged_or_lost_is_generated_again(
    store: Store, ledger: Ledger, permits: Permits, job: JobFile
) -> None:
    damage(store, layout.part(job.stage, 0))
    store.delete([layout.part(job.stage, 2)])
    end(store, ledger, permits)
    state = ledger.job(job.id)
    assert state is not None
    assert (state.status, state.done, state.completed) == (Status.IN_PROGRESS, 1, 4)
    assert ledger.queue_length(permits.queue_key("tiny")) == 1
    for _ in range(2):
        claim = ledger.claim(worker_info())
        assert claim is not None
        assert claim.batch in (0, 2)
        assert find_part(store, job, claim.batch) is None
        path = layout.part(job.stage, claim.batch, 1 if claim.batch == 0 else 0)
        assert store.put_if_absent(path, part_bytes(job, claim.batch))
        part = find_part(store, job, claim.batch)
        assert part is not None
        ledger.finish(job.id, claim.batch, claim.token, part.counts)
    end(store, ledger, permits)
    assert dataset(store, job.id)["row_index"].to_pylist() == list(range(job.rows))
    ended = ledger.job(job.id)
    assert ended is not None
    assert (ended.status, ended.completed) == (Status.COMPLETED, job.rows)


def test_a_job_whose_record_cannot_be_read_has_failed(
    store: Store, ledger: Ledger, permits: Permits, job: JobFile
) -> None:
    damage(store, layout.job_file(job.id))
    end(store, ledger, permits)
    ended = ledger.job(job.id)
    assert ended is not None
    assert ended.status is Status.FAILED


def test_only_a_finalizing_job_is_reopened(store: Store, ledger: Ledger, job: JobFile, permits: Permits) -> None:
    end(store, ledger, permits)
    state = ledger.job(job.id)
    assert state is not None
    assert not ledger.reopen(job.id, [0], PartCounts())
    assert ledger.job(job.id) == state
