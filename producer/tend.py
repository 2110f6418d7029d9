"""Upkeep from the producer's side: what must go on where no worker lives."""

from __future__ import annotations

import time

from jobs.errors import DamagedFileError, JobNotCompletedError
from jobs.finalize import finalize
from jobs.ledger import Beat, Claim, LeaseState
from jobs.records import read_job, wish_cancel
from jobs.spec import JobStatus, Status
from producer.connection import Connection
from producer.status import job_status


def tend(connection: Connection, job: str) -> None:
    """One round of upkeep; then end ``job`` here if that is due and no worker of its model lives.

    Raises UnavailableError.
    """
    connection.reconciler.run_once()
    state = connection.ledger.job(job)
    if state is None or state.status not in (Status.FINALIZING, Status.CANCELLING):
        return
    if any(worker.model == state.model for worker in connection.ledger.workers()):
        return
    claim = connection.ledger.claim_finalize(job, connection.reconciler.owner)
    if claim is not None:
        _end(connection, claim)


def cancel_job(connection: Connection, job: str) -> JobStatus:
    """Cancel ``job``: finished rows stay, the others become ``cancelled``. Raises UnknownJobError, UnavailableError.

    The wish goes to the store first, so that it outlives the loss of Redis.
    """
    status = job_status(connection, job)
    if status.status.ended:
        return status
    wish_cancel(connection.store, job)
    connection.ledger.cancel(job)
    tend(connection, job)
    connection.send_first_permits(status.model)
    return job_status(connection, job)


def _end(connection: Connection, claim: Claim) -> None:
    lease_s, beat = connection.settings.lease_s, Beat(claim.job, claim.batch, claim.token)
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last < lease_s / 6:
            return
        last = time.monotonic()
        if connection.ledger.heartbeat([beat]).get((claim.job, claim.batch)) is LeaseState.LOST:
            raise JobNotCompletedError(f"job {claim.job} is being finalized by another process")

    try:
        record = read_job(connection.store, claim.job)
        counts = finalize(connection.store, record, claim.ending, alive=alive)
    except DamagedFileError as error:
        connection.ledger.fail(claim.job, str(error))
    except JobNotCompletedError:
        return
    else:
        connection.ledger.finalized(claim.job, claim.ending, counts, claim.token)
