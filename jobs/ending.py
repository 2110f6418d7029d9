"""One leased finalization, from its claim to what the ledger is told of it."""

from __future__ import annotations

import logging

from jobs.errors import DamagedFileError
from jobs.finalize import MissingPartsError, Progress, finalize
from jobs.ledger import Claim, Ledger
from jobs.permits import Permits
from jobs.records import read_job
from jobs.store import Store

_log = logging.getLogger(__name__)


def end_job(store: Store, ledger: Ledger, permits: Permits, claim: Claim, alive: Progress) -> None:
    """Publish the dataset of a job whose batches are all done, cancelled or expired.

    Batches whose parts are gone or damaged are generated again first; a job that cannot be published at all
    has failed. ``alive`` is as in ``finalize``. Raises UnknownJobError, UnavailableError.
    """
    try:
        job = read_job(store, claim.job)
        counts = finalize(store, job, claim.ending, alive=alive)
    except MissingPartsError as error:
        _log.error("%s: they are generated again", error)
        ledger.reopen(claim.job, error.batches, error.counts)
        permits.send(job.spec.model)
    except DamagedFileError as error:
        _log.error("job %s cannot be finalized: %s", claim.job, error)
        ledger.fail(claim.job, str(error))
    else:
        ledger.finalized(claim.job, claim.ending, counts, claim.token)
        _log.info("job %s ended: %s, %d rows", claim.job, claim.ending, counts.rows)
