"""Bringing the ledger back from the store, which is the truth. Merges, never overwrites."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from jobs import layout
from jobs.errors import DamagedFileError, JobVersionError, NotFoundError, UnknownJobError
from jobs.finalize import manifest_counts
from jobs.job_file import JobFile
from jobs.ledger import Ledger
from jobs.parts import find_part, list_parts
from jobs.records import has_ended, job_ids, pinned, read_job, read_manifest
from jobs.results import PartCounts, part_counts
from jobs.spec import Status
from jobs.store import Store
from jobs.telemetry.counters import Reason, recoveries

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recovery:
    """What a recovery brought back: the live jobs, those that had ended, and those that cannot be read: because they
    are damaged, or because they are for programs of another version, which bring them back themselves."""

    restored: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def recover_all(store: Store, ledger: Ledger) -> Recovery:
    """Tell the ledger of every job in the store. Pauses and changed priorities lived in Redis alone: they are lost.

    A job that the ledger knows as failed stays so. Raises StoreUnavailableError where the store is gone.
    """
    store.require()  # of a store that is not mounted no job is found either
    found = Recovery()
    for job in job_ids(store):
        try:
            (found.restored if recover_job(store, ledger, job, revive=False) else found.ended).append(job)
        except UnknownJobError:
            continue  # deleted since it was listed
        except JobVersionError as error:
            _log.warning("left alone: %s", error)
            found.others.append(job)
        except DamagedFileError as error:
            _log.error("job %s is left alone: %s", job, error, extra={"job": job})
            found.damaged.append(job)
    ledger.recovered()
    return found


def warn_of_other_stores(ledger: Ledger, store: Store) -> None:
    """A store without a job beside others in the same Redis is more often a mistyped place than a new one."""
    others = other_stores(ledger, store)
    if others and next(job_ids(store), None) is None:
        _log.warning("the store %s has no jobs; this Redis also serves %s", store.uri, others)


def other_stores(ledger: Ledger, store: Store) -> str:
    """The other stores that this Redis serves, to be shown; '' if there are none."""
    others = {uri for store_id, uri in ledger.stores().items() if store_id != store.id}
    return ", ".join(
        f"{uri} (another one, which was there before)" if uri == store.uri else uri for uri in sorted(others)
    )


def recover_if_needed(store: Store, ledger: Ledger) -> None:
    """Recover all jobs where this Redis may have forgotten some: it is new, was flushed, or has restarted."""
    if not ledger.needs_recover():
        return
    found = recover_all(store, ledger)
    if found.restored:
        recoveries.count(Reason.LEDGER_RESTORED)
        _log.warning(
            "Redis is new or has restarted: %d jobs were brought back from the store; "
            "pauses and changed priorities that it has lost stay lost",
            len(found.restored),
        )


def recover_job(store: Store, ledger: Ledger, job: str, *, revive: bool = True) -> bool:
    """Tell the ledger of one job and of its finished batches; False if the job has ended.

    With ``revive`` a job that has failed goes on, keeping its parts: what made it fail may be mended.
    Raises UnknownJobError, DamagedFileError.
    """
    record = read_job(store, job)
    if has_ended(store, job):
        _end_in_ledger(store, ledger, record)
        return False
    fingerprint = pinned(store, job)
    state = ledger.job(job)
    if state is not None and state.status is Status.FAILED:
        if not revive:
            return False
        ledger.forget(job)
    ledger.restore(record, {}, fingerprint)
    # Before the batches: the last of them would settle the job, which would then end as completed.
    if store.exists(layout.cancel_file(job)):
        ledger.cancel(job)
    elif store.exists(layout.expired_file(job)):
        ledger.expire(job)
    ledger.restore(record, _unknown_parts(store, ledger, record), fingerprint)
    return True


def _unknown_parts(store: Store, ledger: Ledger, job: JobFile) -> dict[int, PartCounts]:
    """The counts of the parts that the ledger was not told of."""
    known = ledger.done(job.id)
    found = {}
    for batch, path in list_parts(store, job.stage).items():
        counts = None if batch in known else _counts(store, job, batch, path)
        if counts is not None:
            found[batch] = counts
    return found


def _counts(store: Store, job: JobFile, batch: int, path: str) -> PartCounts | None:
    """From the footer alone: decoding every row takes far longer, and the finalizer does it before it trusts a part."""
    try:
        return part_counts(store.get(path))
    except NotFoundError:
        return None  # a finalizer has removed it since it was listed
    except DamagedFileError:
        part = find_part(store, job, batch)
        return None if part is None else part.counts


def _end_in_ledger(store: Store, ledger: Ledger, record: JobFile) -> None:
    """A finalizer that died after ``_SUCCESS`` left the ledger believing that the job lives, or has failed."""
    state = ledger.job(record.id)
    if state is not None and state.status is Status.FAILED:
        ledger.forget(record.id)  # the dataset is whole: its manifest tells how the job ended
        return
    if state is None or state.status.ended:
        return
    try:
        ending = manifest_status(store, record.id)
        ledger.finalized(record.id, ending, manifest_counts(store, record.id), None)
    except NotFoundError as error:
        raise DamagedFileError(f"job {record.id} has _SUCCESS but no manifest: {error}") from error


def manifest_status(store: Store, job: str) -> Status:
    """How an ended job ended. Raises NotFoundError or DamagedFileError."""
    manifest = read_manifest(store, job)
    if manifest is None:
        raise NotFoundError(f"job {job} has not ended")
    try:
        return Status(str(manifest["status"]))
    except (KeyError, ValueError) as error:
        raise DamagedFileError(f"{store.locate(layout.manifest_file(job))} cannot be read: {error}") from error
