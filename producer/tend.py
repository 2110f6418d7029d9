"""Upkeep from the producer's side: what must go on where no worker lives."""

from __future__ import annotations

import time
from contextlib import suppress

from jobs.ending import end_job
from jobs.errors import InputError, LeaseLostError
from jobs.ledger import Beat, Claim, LeaseState
from jobs.records import wish_cancel
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


def pause_job(connection: Connection, job: str) -> JobStatus:
    """Start no more batches of ``job``; those that run are finished. Raises as ``set_priority``."""
    _living(connection, job, "paused")
    connection.ledger.pause(job)
    return job_status(connection, job)


def resume_job(connection: Connection, job: str) -> JobStatus:
    """Go on with a paused job. Raises as ``set_priority``."""
    model = _living(connection, job, "resumed").model
    connection.ledger.resume(job)
    connection.send_first_permits(model)
    return job_status(connection, job)


def set_priority(connection: Connection, job: str, priority: int) -> JobStatus:
    """Give ``job`` another share of the workers. Raises UnknownJobError, InputError, UnavailableError."""
    _living(connection, job, "given a priority")
    connection.ledger.priority(job, priority)
    return job_status(connection, job)


def _living(connection: Connection, job: str, done: str) -> JobStatus:
    """The status of a job that lives. Raises InputError for one that has ended, which the ledger forgets in time."""
    status = job_status(connection, job)
    if status.status.ended:
        raise InputError(f"job {job} is {status.status} and can no longer be {done}")
    return status


def _end(connection: Connection, claim: Claim) -> None:
    """End a job here, extending the lease between steps."""
    beat, every_s = Beat(claim.job, claim.batch, claim.token), connection.settings.lease_s / 6
    last = time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last < every_s:
            return
        last = time.monotonic()
        if connection.ledger.heartbeat([beat]).get((claim.job, claim.batch)) is LeaseState.LOST:
            raise LeaseLostError

    with suppress(LeaseLostError):
        end_job(connection.store, connection.ledger, connection.permits, claim, alive)
