"""The path of a claimed batch through a worker: generate, commit, and tell the ledger."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    sleep_using_event,
    stop_after_delay,
    wait_random_exponential,
)

from jobs.errors import InputError, LeaseLostError, StoreUnavailableError, UnavailableError, UnknownJobError
from jobs.job_file import JobFile
from jobs.ledger import Claim
from jobs.parts import Part, commit_part, find_part
from jobs.records import pin, read_job
from jobs.recover import recover_job
from jobs.results import PartCounts
from jobs.telemetry.counters import Reason, recoveries
from jobs.telemetry.tracing import step
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
        worker.require_lease(lease)
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
        worker.send_permit()
