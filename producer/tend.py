"""Upkeep from the producer's side: what must go on where no worker lives."""

from __future__ import annotations

import time

from jobs.ending import end_job, is_going
from jobs.errors import InputError, LeaseLostError, PromptmillError, UnknownJobError
from jobs.ledger import Beat, Claim, LeaseState, Release
from jobs.records import wish_cancel
from jobs.spec import Status
from jobs.status import JobStatus
from jobs.telemetry.logs import turn_to
from producer.connection import Connection
from producer.status import job_status

#: A job in one of these has no batch left to begin: what it waits for is its dataset.
ENDING = (Status.FINALIZING, Status.CANCELLING)


def tend(connection: Connection, *jobs: str) -> None:
    """One round of upkeep; then end those of ``jobs`` here that wait for it and whose model no live worker serves.

    Raises UnavailableError.
    """
    connection.reconciler.run_once()
    ending = [state for state in connection.ledger.jobs(jobs) if state.status in ENDING]
    served = {worker.model for worker in connection.ledger.workers()} if ending else set()
    for state in ending:
        if state.model in served:
            continue
        claim = connection.ledger.claim_finalize(state.id, connection.reconciler.owner)
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
    """End a job here, extending the lease between steps; a lease whose work fails is given back."""
    ledger, beat = connection.ledger, Beat(claim.job, claim.batch, claim.token)
    every_s, last = connection.settings.lease_s / 6, time.monotonic()

    def alive() -> None:
        nonlocal last
        if time.monotonic() - last < every_s:
            return
        last = time.monotonic()
        if ledger.heartbeat([beat]).get((claim.job, claim.batch)) is LeaseState.LOST:
            raise LeaseLostError

    turn_to(job=claim.job)
    try:
        end_job(connection.store, ledger, connection.permits, claim, alive)
    except LeaseLostError:
        pass
    except UnknownJobError as error:
        # Deleted meanwhile; or its record is gone, unless it is the store that is.
        if not is_going(connection.store, ledger, claim.job):
            ledger.fail(claim.job, str(error))
    except PromptmillError:
        raise
    except Exception:
        # Counted: what comes back every time is to fail the job in the end.
        ledger.release(claim.job, claim.batch, claim.token, Release.FAILED)
        raise
    turn_to()
