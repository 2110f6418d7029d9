"""What a slot does with a permit: it claims batches and jobs to end until there are none, and hands back what fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from jobs.deletion import clear_if_deleted
from jobs.ending import end_job
from jobs.errors import DamagedFileError, InputError, LeaseLostError, UnavailableError, UnknownJobError
from jobs.ledger import FINALIZE, Claim, Release
from jobs.permits import SUCCESSORS
from jobs.telemetry.counters import Reason, recoveries
from jobs.telemetry.logs import turn_to
from jobs.telemetry.tracing import moment, span
from worker.batch import run_batch
from worker.context import WorkerContext
from worker.leases import HeldLease

_log = logging.getLogger(__name__)


def run_permit(worker: WorkerContext) -> None:
    """Use one permit: run batches and end jobs, one after the other, for as long as the ledger hands out any.

    A slot that needed a permit for each batch would stand idle after each, until Celery next looks into its queue:
    up to a second with prefetching off.
    """
    while True:
        try:
            if not run_claim(worker):
                return
        except UnavailableError as error:
            # The permit is kept: a Redis that is full takes no other.
            _log.warning("no claim: %s", error)
            worker.back_off()


def run_claim(worker: WorkerContext) -> bool:
    """Run one batch, or end one job; False if there is none, or what there was had to be handed back.

    Raises UnavailableError where the ledger cannot be asked.
    """
    turn_to()
    with ExitStack() as admission:
        if not admission.enter_context(worker.admission()):
            return False
        began = moment()
        claim = worker.ledger.claim(worker.info())
        if claim is None:
            return False
        done = False
        turn_to(job=claim.job, batch=claim.batch if claim.kind != FINALIZE else None, attempt=claim.attempt)
        if claim.kind != FINALIZE and claim.attempt > 1:
            recoveries.count(Reason.BATCH_RETRIED)
        with _leased(worker, claim) as lease:
            if claim.more:
                worker.send_permit(SUCCESSORS)
            if claim.kind == FINALIZE:
                admission.close()
                finalize_claimed(worker, claim, lease)
            else:
                with span("batch", worker.store.id, claim.job, began, batch=claim.batch, attempt=claim.attempt):
                    run_batch(worker, claim, lease, admission.close)
            worker.went_well()
            done = True
        return done


@contextmanager
def _leased(worker: WorkerContext, claim: Claim) -> Iterator[HeldLease]:
    """Hold a lease while it is worked on; work that comes to no end is handed back at once."""
    lease = worker.leases.hold(claim)
    try:
        yield lease
    except UnavailableError as error:
        _hand_back(worker, lease, error)
    except (DamagedFileError, InputError) as error:
        # An unknown job is one, and so is an id that is none: only somebody who writes to Redis himself gives those.
        _fail_job(worker, lease, error)
    except LeaseLostError:
        _release(worker, claim)
    except BaseException:
        # An engine that died takes its process with it, and one of the rows in hand may be why.
        _release(worker, claim, Release.FAILED if worker.engine.failure is None else Release.CRASHED)
        raise
    finally:
        worker.leases.let_go(lease)


def _fail_job(worker: WorkerContext, lease: HeldLease, error: Exception) -> None:
    """A job whose record is gone or damaged has failed, unless it is the store itself that is away."""
    claim = lease.claim
    try:
        worker.store.require()
    except UnavailableError as away:
        _hand_back(worker, lease, away)
        return
    if isinstance(error, UnknownJobError) and clear_if_deleted(worker.store, claim.job, worker.ledger.forget):
        return
    _log.error("job %s cannot go on: %s", claim.job, error)
    worker.ledger.fail(claim.job, str(error))


def _hand_back(worker: WorkerContext, lease: HeldLease, error: Exception) -> None:
    claim = lease.claim
    _log.warning("job %s batch %d is handed back: %s", claim.job, claim.batch, error)
    _release(worker, claim)
    # Before the pause: it is no longer in hand, and the next heartbeat would find it lost.
    worker.leases.let_go(lease)
    worker.back_off()


def finalize_claimed(worker: WorkerContext, claim: Claim, lease: HeldLease) -> None:
    """End a job. Raises LeaseLostError, UnavailableError."""
    end_job(worker.store, worker.ledger, worker.permits, claim, lambda: worker.require_lease(lease))


def _release(worker: WorkerContext, claim: Claim, how: Release = Release.RELEASED) -> None:
    """Hand a lease back at once; if that cannot be said, its expiry says it."""
    try:
        worker.ledger.release(claim.job, claim.batch, claim.token, how)
    except UnavailableError as error:
        _log.warning("job %s batch %d: its lease will expire by itself: %s", claim.job, claim.batch, error)
