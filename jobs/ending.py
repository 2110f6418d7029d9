"""One leased finalization, from its claim to what the ledger is told of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jobs.deletion import clear_if_deleted
from jobs.errors import DamagedFileError, NotFoundError, PromptmillError
from jobs.finalize import MissingPartsError, Progress, finalize
from jobs.job_file import JobFile
from jobs.ledger import Claim, Ledger
from jobs.records import read_job
from jobs.recover import manifest_status
from jobs.results import PartCounts
from jobs.store import Store
from jobs.telemetry.counters import Reason, recoveries
from jobs.telemetry.tracing import span

if TYPE_CHECKING:
    # Celery takes a while to import, and commands that end no job import this module too.
    from jobs.permits import Permits

_log = logging.getLogger(__name__)

#: Finalizations of a job that may fail in ways that nobody foresaw before the job has failed.
MAX_FAILURES = 3


def end_job(store: Store, ledger: Ledger, permits: Permits, claim: Claim, alive: Progress) -> None:
    """Publish the dataset of a job whose batches are all done, cancelled or expired.

    Batches whose parts are gone or damaged are generated again first; a job that cannot be published at all
    has failed. ``alive`` is as in ``finalize``. Raises UnknownJobError, UnavailableError.
    """
    try:
        with span("finalize", store.id, claim.job, attempt=claim.attempt):
            job = read_job(store, claim.job)
            _end(store, ledger, job, claim, alive)
    except MissingPartsError as error:
        if is_going(store, ledger, claim.job):
            return
        recoveries.count(Reason.PART_LOST, len(error.batches))
        _log.error("%s: they are generated again", error)
        if not ledger.reopen(claim.job, error.batches, error.counts):
            # It is cancelled or expired: the next finalization fills them, and need not wait for this lease to expire.
            ledger.release(claim.job, claim.batch, claim.token)
        permits.send(job.spec.model)
    except DamagedFileError as error:
        if not is_going(store, ledger, claim.job):
            _fail(ledger, claim, error)
    except NotFoundError:
        if not is_going(store, ledger, claim.job):
            raise
    except PromptmillError:
        raise
    except Exception as error:
        # What nobody foresaw may pass; what comes back every time must not come back for ever.
        if claim.failures + 1 < MAX_FAILURES:
            raise
        _fail(ledger, claim, error)


def _end(store: Store, ledger: Ledger, job: JobFile, claim: Claim, alive: Progress) -> None:
    def published(counts: PartCounts) -> None:
        # How the manifest says it ended: it may be that of a finalizer before this one.
        ending = manifest_status(store, job.id)
        ledger.finalized(job.id, ending, counts, claim.token)
        _log.info("job %s ended: %s, %d rows", job.id, ending, counts.rows)

    finalize(store, job, claim.ending, alive=alive, published=published)
    clear_if_deleted(store, job.id, ledger.forget)


def is_going(store: Store, ledger: Ledger, job: str) -> bool:
    """Whether files of ``job`` are missing because somebody deletes it; what was put of it meanwhile is removed then.

    Raises UnavailableError where all of the store is missing.
    """
    store.require()
    return clear_if_deleted(store, job, ledger.forget)


def _fail(ledger: Ledger, claim: Claim, error: Exception) -> None:
    _log.error("job %s cannot be finalized: %s", claim.job, error)
    ledger.fail(claim.job, f"{type(error).__name__}: {error}"[:500])
