"""The path of one permit through a worker: claim, generate, commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    wait_random_exponential,
)

from jobs.deletion import clear_if_deleted
from jobs.ending import end_job
from jobs.errors import (
    DamagedFileError,
    InputError,
    LeaseLostError,
    StoreUnavailableError,
    UnavailableError,
    UnknownJobError,
)
from jobs.ledger import FINALIZE, Claim, LeaseState, Release
from jobs.parts import Part, commit_part, find_part
from jobs.permits import SUCCESSORS
from jobs.records import pin, read_job
from jobs.recover import recover_job
from jobs.results import PartCounts
from jobs.spec import JobFile
from jobs.telemetry.counters import Reason, recoveries
from jobs.telemetry.logs import turn_to
from jobs.telemetry.tracing import moment, span, step
from worker.context import WorkerContext
from worker.generate import failed_batch, generate
from worker.leases import HeldLease
from worker.metrics import observe_batch

_log = logging.getLogger(__name__)

#: Runs of a batch that may fail for no fault of engine, store or Redis before it becomes error rows.
MAX_FAILURES = 3

#: Jobs whose pins a process keeps in mind; more are looked up in the store again.
_MAX_PINS = 1_000

#: Seconds that a generated part waits for a store that is away or full, and the longest pause between two tries. After
#: that the batch goes back: another worker may reach the store.
_COMMIT_PATIENCE_S, _COMMIT_PAUSE_S = 600.0, 30.0


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
                _send_permit(worker, SUCCESSORS)
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


def run_batch(worker: WorkerContext, claim: Claim, lease: HeldLease, submitted: Callable[[], None]) -> None:
    """Generate a claimed batch and commit its part; ``submitted`` is called when its rows are in the engine.

    Raises LeaseLostError, UnavailableError.
    """
    started = time.monotonic()
    job = read_job(worker.store, claim.job)
    if not 0 <= claim.batch < job.batches:
        raise InputError(f"it has {job.batches} batches, and Redis names batch {claim.batch}")
    _pin(worker, job)
    part = find_part(worker.store, job, claim.batch)
    if part is None:
        with step("generate"):
            content = _contents(worker, job, claim, lease, submitted)
        with step("commit"):
            part = _commit(worker, job, claim, lease, content)
        # Now: it stays committed whether or not the ledger can be told.
        observe_batch(worker.model, part.counts, time.monotonic() - started)
    with step("finish"):
        _finish(worker, job, claim, part.counts)


def _commit(worker: WorkerContext, job: JobFile, claim: Claim, lease: HeldLease, content: bytes) -> Part:
    """Put what was generated. It was paid for: a store that is away or full is waited for while the lease is held.

    Raises LeaseLostError, UnavailableError.
    """

    def put() -> Part:
        if lease.state is LeaseState.LOST or worker.abandoned.is_set():
            raise LeaseLostError
        return commit_part(worker.store, job, claim.batch, content)

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.warning("job %s batch %d waits to be committed: %s", job.id, claim.batch, error)

    try:
        return put()
    except StoreUnavailableError:
        with worker.waiting_to_commit:
            waiting = Retrying(
                retry=retry_if_exception_type(StoreUnavailableError),
                wait=wait_random_exponential(multiplier=0.5, max=_COMMIT_PAUSE_S),
                stop=stop_after_delay(_COMMIT_PATIENCE_S),
                sleep=sleep_using_event(worker.abandoned),
                before_sleep=tell,
                reraise=True,
            )
            part = waiting(put)
            recoveries.count(Reason.STORE_RECONNECTED)
            return part


def _pin(worker: WorkerContext, job: JobFile) -> None:
    """See to it that all of a job comes from the same weights, also when Redis forgets which.

    Raises UnavailableError where others have begun it.
    """
    mine = worker.registration.fingerprint
    if worker.pins.get(job.id) != mine:
        worker.pins[job.id] = pin(worker.store, job.id, mine)
    if worker.pins[job.id] != mine:
        raise UnavailableError(f"it was begun with weights {worker.pins[job.id]}, these are {mine}")
    while len(worker.pins) > _MAX_PINS:
        worker.pins.pop(next(iter(worker.pins)), None)


def _contents(
    worker: WorkerContext, job: JobFile, claim: Claim, lease: HeldLease, submitted: Callable[[], None]
) -> bytes:
    """The part of a batch: generated, or error rows where an error that nobody foresaw comes back every time.

    Such a batch would otherwise go round for ever, and its job would never end.
    """
    try:
        return generate(worker, job, claim, lease, submitted)
    except (LeaseLostError, UnavailableError):
        raise
    except Exception as error:
        if claim.failures + 1 < MAX_FAILURES or worker.engine.failure is not None:
            raise
        _log.exception("job %s batch %d: attempt %d failed too: error rows", job.id, claim.batch, claim.attempt)
        return failed_batch(worker, job, claim, f"{type(error).__name__}: {error}"[:500])


def finalize_claimed(worker: WorkerContext, claim: Claim, lease: HeldLease) -> None:
    """End a job. Raises LeaseLostError, UnavailableError."""

    def alive() -> None:
        if lease.state is LeaseState.LOST or worker.abandoned.is_set():
            raise LeaseLostError

    end_job(worker.store, worker.ledger, worker.permits, claim, alive)


def _finish(worker: WorkerContext, job: JobFile, claim: Claim, counts: PartCounts) -> None:
    """Tell the ledger; one that has forgotten the job learns it from the store, this part included.

    One that is away is waited for: the slot could claim nothing meanwhile, and the lease of a batch that was given up
    would have to expire before anyone found its part. Raises UnavailableError where the process is draining.
    """
    while True:
        try:
            finished = worker.ledger.finish(job.id, claim.batch, claim.token, counts)
        except UnknownJobError:
            recover_job(worker.store, worker.ledger, job.id)
            recoveries.count(Reason.JOB_RESTORED)
            return
        except UnavailableError as error:
            if worker.draining.is_set():
                raise
            _log.warning("job %s batch %d is done and waits to be told: %s", job.id, claim.batch, error)
            worker.back_off()
        else:
            break
    if finished.finalize:
        _send_permit(worker)


def _send_permit(worker: WorkerContext, count: int = 1) -> None:
    """See to it that other slots go on, here or elsewhere. Where that fails, upkeep does it."""
    try:
        if not worker.permit_waits:
            worker.permits.send(worker.model, count)
    except UnavailableError as error:
        _log.warning("a permit could not be sent: %s", error)


def _release(worker: WorkerContext, claim: Claim, how: Release = Release.RELEASED) -> None:
    """Hand a lease back at once; if that cannot be said, its expiry says it."""
    try:
        worker.ledger.release(claim.job, claim.batch, claim.token, how)
    except UnavailableError as error:
        _log.warning("job %s batch %d: its lease will expire by itself: %s", claim.job, claim.batch, error)
