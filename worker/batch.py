"""The path of one permit through a worker: claim, generate, commit."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass

import pyarrow as pa

from jobs.ending import end_job
from jobs.errors import DamagedFileError, LeaseLostError, UnavailableError, UnknownJobError
from jobs.finalize import batch_rows, lost_batch, read_input
from jobs.ledger import FINALIZE, Claim, LeaseState
from jobs.parts import commit_part, find_part
from jobs.prompts import InputBatch, Prompt
from jobs.records import pin, read_job
from jobs.recover import recover_job
from jobs.results import PartCounts, ResultRow, write_part
from jobs.spec import JobFile, RowError, default_seed
from worker.context import WorkerContext
from worker.engine.request import Completion, Request
from worker.leases import HeldLease
from worker.metrics import observe_batch
from worker.models import TokenizeError

_log = logging.getLogger(__name__)

#: Runs of a batch that may fail for no fault of engine, store or Redis before it becomes error rows.
MAX_FAILURES = 3

#: Jobs whose pins a process keeps in mind; more are looked up in the store again.
_MAX_PINS = 1_000

#: The row status of rows that a lease's state took away.
_STOPPED = {LeaseState.CANCELLED: "cancelled", LeaseState.EXPIRED: "expired"}


#: Seconds between handing back a batch, because the store or Redis failed, and the thread's next claim.
_BACK_OFF_S = 2.0


def run_permit(worker: WorkerContext) -> None:
    """Use one permit: run batches and end jobs, one after the other, for as long as the ledger hands out any.

    A slot that needed a permit for each batch would stand idle after each, until Celery next looks into its queue:
    up to a second with prefetching off.
    """
    while run_claim(worker):
        pass


def run_claim(worker: WorkerContext) -> bool:
    """Run one batch, or end one job; False if there is none, or what there was had to be handed back."""
    with ExitStack() as admission:
        if not admission.enter_context(worker.admission()):
            return False
        claim = worker.ledger.claim(worker.info())
        if claim is None:
            return False
        done = False
        with _leased(worker, claim) as lease:
            if claim.more and not worker.permit_waits:
                worker.permits.send(worker.model)
            if claim.kind == FINALIZE:
                admission.close()
                finalize_claimed(worker, claim, lease)
            else:
                run_batch(worker, claim, lease, admission.close)
            done = True
        return done


@contextmanager
def _leased(worker: WorkerContext, claim: Claim) -> Iterator[HeldLease]:
    """Hold a lease while it is worked on; work that comes to no end is handed back at once."""
    lease = worker.leases.hold(claim)
    try:
        yield lease
    except UnavailableError as error:
        _hand_back(worker, claim, error)
    except (DamagedFileError, UnknownJobError) as error:
        _fail_job(worker, claim, error)
    except LeaseLostError:
        _release(worker, claim)
    except BaseException:
        # An engine that died takes its process with it; that says nothing about these rows.
        _release(worker, claim, failed=worker.engine.failure is None)
        raise
    finally:
        worker.leases.let_go(lease)


def _fail_job(worker: WorkerContext, claim: Claim, error: Exception) -> None:
    """A job whose record is gone or damaged has failed, unless it is the store itself that is away."""
    try:
        worker.store.require()
    except UnavailableError as away:
        _hand_back(worker, claim, away)
        return
    _log.error("job %s cannot go on: %s", claim.job, error)
    worker.ledger.fail(claim.job, str(error))


def _hand_back(worker: WorkerContext, claim: Claim, error: Exception) -> None:
    _log.warning("job %s batch %d is handed back: %s", claim.job, claim.batch, error)
    _release(worker, claim)
    # The batch can be claimed again at once: while a store is down that would be a busy loop.
    worker.draining.wait(_BACK_OFF_S)


def run_batch(worker: WorkerContext, claim: Claim, lease: HeldLease, submitted: Callable[[], None]) -> None:
    """Generate a claimed batch and commit its part; ``submitted`` is called when its rows are in the engine.

    Raises LeaseLostError, UnavailableError.
    """
    started = time.monotonic()
    job = read_job(worker.store, claim.job)
    _pin(worker, job)
    part = find_part(worker.store, job.stage, claim.batch)
    if part is None:
        part = commit_part(worker.store, job.stage, claim.batch, _contents(worker, job, claim, lease, submitted))
    _finish(worker, job, claim, part.counts)
    observe_batch(worker.model, part.counts, time.monotonic() - started)


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
        return _failed_batch(worker, job, claim, f"{type(error).__name__}: {error}"[:500])


def _failed_batch(worker: WorkerContext, job: JobFile, claim: Claim, message: str) -> bytes:
    """The part of a batch that cannot be run: ``internal_error`` rows, with its own columns if those can be written."""
    source = read_input(worker.store, job, claim.batch)
    rows = [
        _failed(ResultRow(prompt.row_index, sample, prompt.custom_id, "error"), RowError.INTERNAL_ERROR, message)
        for prompt in source.prompts
        for sample in range(prompt.sampling.n)
    ]
    _sign(worker, job, claim, rows)
    first = batch_rows(job, claim.batch).start
    try:
        return write_part(rows, source.columns, job.columns, first)
    except pa.ArrowException:
        return write_part(rows, pa.table({}), job.columns, first)


def _sign(worker: WorkerContext, job: JobFile, claim: Claim, rows: list[ResultRow]) -> None:
    """Note in each row who made it, and with which model."""
    for row in rows:
        row.model, row.model_revision = job.spec.model, worker.registration.revision
        row.attempt, row.worker = claim.attempt, worker.registration.id


def generate(
    worker: WorkerContext, job: JobFile, claim: Claim, lease: HeldLease, submitted: Callable[[], None]
) -> bytes:
    """The part of a batch, generated."""
    try:
        source = read_input(worker.store, job, claim.batch)
    except DamagedFileError as error:
        worker.store.require()
        return lost_batch(job, claim.batch, str(error))
    pending = _submit(worker, job, source, lease)
    submitted()
    rows = [_collect(worker, one, lease) for one in pending]
    _sign(worker, job, claim, rows)
    return write_part(rows, source.columns, job.columns, batch_rows(job, claim.batch).start)


@dataclass(slots=True)
class _Pending:
    """One result row on its way: refused already, or in the engine."""

    prompt: Prompt
    sample: int
    seed: int
    future: Future[Completion] | None
    code: str | None = None
    message: str | None = None


def _submit(worker: WorkerContext, job: JobFile, source: InputBatch, lease: HeldLease) -> list[_Pending]:
    """Hand all samples of all rows to the engine; a row that cannot be encoded is refused here."""
    pending = []
    for prompt in source.prompts:
        ids: list[int] = []
        code, message = prompt.error_code, prompt.error_message
        if code is None:
            try:
                ids = encode(worker, prompt)
            except TokenizeError as error:
                code, message = str(error.code), str(error)
        for sample in range(prompt.sampling.n):
            given = prompt.sampling.seed
            seed = given if given is not None else default_seed(job.id, prompt.row_index, sample)
            future = None
            if code is None:
                request = Request(job.id, ids, prompt.sampling, seed, sample)
                # In this order: whoever drops the lease meanwhile sees the request, or is seen here.
                lease.requests.append(request)
                request.cancelled = lease.state is not LeaseState.HELD
                future = worker.engine.submit(request)
            pending.append(_Pending(prompt, sample, seed, future, code, message))
    return pending


def encode(worker: WorkerContext, prompt: Prompt) -> list[int]:
    """The token ids of a row: its prompt as it is, or its messages through the model's chat template."""
    if prompt.messages is not None:
        return worker.tokenizer.render(prompt.messages)
    return worker.tokenizer.encode(prompt.prompt or "")


def _collect(worker: WorkerContext, pending: _Pending, lease: HeldLease) -> ResultRow:
    """Wait for one row. Raises LeaseLostError when the work is to be dropped."""
    prompt = pending.prompt
    row = ResultRow(prompt.row_index, pending.sample, prompt.custom_id, "ok", seed=pending.seed)
    if pending.future is None:
        return _failed(row, pending.code, pending.message)
    completion = _wait(worker, pending.future, lease)
    row.prompt_tokens, row.completion_tokens = completion.prompt_tokens, len(completion.token_ids)
    row.started_at, row.finished_at = completion.started_at, completion.finished_at
    row.repeated, row.shared_prompt_tokens = completion.repeated, completion.shared_tokens
    if completion.token_ids and not completion.repeated:
        row.computed_prompt_tokens = completion.prompt_tokens - completion.shared_tokens
    if completion.cancelled:
        if lease.state not in _STOPPED:
            # Nobody asked for the row to end: the lease is lost, or the engine is being closed.
            raise LeaseLostError
        row.status, row.completion_tokens = _STOPPED[lease.state], None
        return row
    if completion.error_code is not None:
        return _failed(row, completion.error_code, completion.error_message)
    row.text, row.finish_reason = completion.text, completion.finish_reason
    row.mean_logprob = completion.mean_logprob
    lease.rows_done, lease.tokens = lease.rows_done + 1, lease.tokens + len(completion.token_ids)
    return row


def _failed(row: ResultRow, code: str | None, message: str | None) -> ResultRow:
    row.status, row.finish_reason = "error", "error"
    row.error_code, row.error_message = str(code), message
    return row


def _wait(worker: WorkerContext, future: Future[Completion], lease: HeldLease) -> Completion:
    while not future.done():
        if worker.abandoned.is_set() or lease.state is LeaseState.LOST:
            for request in lease.requests:
                request.cancelled = True
            raise LeaseLostError
        with suppress(TimeoutError):
            return future.result(timeout=0.5)
    return future.result()


def finalize_claimed(worker: WorkerContext, claim: Claim, lease: HeldLease) -> None:
    """End a job. Raises LeaseLostError, UnavailableError."""

    def alive() -> None:
        if lease.state is LeaseState.LOST or worker.abandoned.is_set():
            raise LeaseLostError

    end_job(worker.store, worker.ledger, worker.permits, claim, alive)


def _finish(worker: WorkerContext, job: JobFile, claim: Claim, counts: PartCounts) -> None:
    """Tell the ledger; one that has forgotten the job learns it from the store, this part included."""
    try:
        finished = worker.ledger.finish(job.id, claim.batch, claim.token, counts)
    except UnknownJobError:
        recover_job(worker.store, worker.ledger, job.id)
        return
    if finished.finalize:
        worker.permits.send(worker.model)


def _release(worker: WorkerContext, claim: Claim, *, failed: bool = False) -> None:
    """Hand a lease back at once; if that cannot be said, its expiry says it."""
    try:
        worker.ledger.release(claim.job, claim.batch, claim.token, failed)
    except UnavailableError as error:
        _log.warning("job %s batch %d: its lease will expire by itself: %s", claim.job, claim.batch, error)
