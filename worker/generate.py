"""The rows of a claimed batch, generated: in company, alone, or one by one where they have ended processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa

from jobs.errors import DamagedFileError, LeaseLostError
from jobs.inputs import lost_batch, read_input
from jobs.job_file import JobFile
from jobs.ledger import Claim, LeaseState
from jobs.prompts import InputBatch, Prompt
from jobs.results import ResultRow, write_part
from jobs.spec import RowError, default_seed
from worker.context import WorkerContext
from worker.engine.request import Completion, Request
from worker.leases import HeldLease
from worker.models import TokenizeError

_log = logging.getLogger(__name__)

#: Expiries after which a batch runs with nothing beside it, and after which row by row; and the processes that a row
#: may end, one after the other, while it runs alone.
ALONE_AFTER, ROW_BY_ROW_AFTER, MAX_CRASHES = 2, 3, 3

#: Seconds between two looks at whether the engine is empty.
_ALONE_POLL_S = 0.05

#: The row status of rows that a lease's state took away.
_STOPPED = {LeaseState.CANCELLED: "cancelled", LeaseState.EXPIRED: "expired"}


def generate(
    worker: WorkerContext, job: JobFile, claim: Claim, lease: HeldLease, submitted: Callable[[], None]
) -> bytes:
    """The part of a batch, generated."""
    try:
        source = read_input(worker.store, job, claim.batch)
    except DamagedFileError as error:
        worker.store.require()
        return lost_batch(worker.store, job, claim.batch, str(error))
    rows = _run(worker, job, claim, source, lease, submitted)
    _sign(worker, job, claim, rows)
    return write_part(rows, source.columns, job.columns, job.batch_rows(claim.batch).start, source.carried)


def failed_batch(worker: WorkerContext, job: JobFile, claim: Claim, message: str) -> bytes:
    """The part of a batch that cannot be run: ``internal_error`` rows, with its own columns if those can be written."""
    source = read_input(worker.store, job, claim.batch)
    rows = [
        _failed(ResultRow(prompt.row_index, sample, prompt.custom_id, "error"), RowError.INTERNAL_ERROR, message)
        for prompt in source.prompts
        for sample in prompt.samples
    ]
    _sign(worker, job, claim, rows)
    first = job.batch_rows(claim.batch).start
    try:
        return write_part(rows, source.columns, job.columns, first, source.carried)
    except pa.ArrowException:
        return write_part(rows, pa.table({}), job.columns, first, source.carried)


def _sign(worker: WorkerContext, job: JobFile, claim: Claim, rows: list[ResultRow]) -> None:
    """Note in each row who made it, and with which model."""
    for row in rows:
        row.model, row.model_revision = job.spec.model, worker.registration.revision
        row.attempt, row.worker = claim.attempt, worker.registration.id


def _run(
    worker: WorkerContext,
    job: JobFile,
    claim: Claim,
    source: InputBatch,
    lease: HeldLease,
    submitted: Callable[[], None],
) -> list[ResultRow]:
    """The rows of a batch, beside those of others; or alone, where its runs have taken processes with them.

    Nothing enters the engine before ``submitted`` is called, so what does not call it has the engine to itself.
    """
    if claim.expiries < ALONE_AFTER:
        pending = _submit(worker, job, source.prompts, lease)
        submitted()
        return [_collect(worker, one, lease) for one in pending]
    _wait_until_alone(worker, lease)
    if claim.expiries < ROW_BY_ROW_AFTER:
        _log.warning("job %s batch %d has cost %d processes: it runs alone", job.id, claim.batch, claim.expiries)
        return [_collect(worker, one, lease) for one in _submit(worker, job, source.prompts, lease)]
    _log.warning("job %s batch %d has cost %d processes: row by row", job.id, claim.batch, claim.expiries)
    rows: list[ResultRow] = []
    # What crashed last time goes first: until that is settled, all others would be generated again and again.
    for prompt in sorted(source.prompts, key=lambda prompt: -claim.crashes.get(prompt.row_index, 0)):
        rows += _run_row(worker, job, claim, prompt, lease)
    return sorted(rows, key=lambda row: (row.row_index, row.sample_index))


def _run_row(worker: WorkerContext, job: JobFile, claim: Claim, prompt: Prompt, lease: HeldLease) -> list[ResultRow]:
    """The samples of one row that runs alone, noted first; error rows if it has ended too many processes.

    Raises LeaseLostError, UnavailableError.
    """
    crashes = claim.crashes.get(prompt.row_index, 0)
    if crashes >= MAX_CRASHES and prompt.error_code is None:
        prompt = replace(
            prompt,
            error_code=str(RowError.POISON),
            error_message=f"{crashes} worker processes ended while this row ran alone",
        )
    elif not worker.ledger.suspect(job.id, claim.batch, claim.token, prompt.row_index):
        raise LeaseLostError
    return [_collect(worker, one, lease) for one in _submit(worker, job, [prompt], lease)]


def _wait_until_alone(worker: WorkerContext, lease: HeldLease) -> None:
    """Returns when no row is in the engine. Raises LeaseLostError."""
    while worker.engine.rows_in_hand:
        worker.require_lease(lease)
        time.sleep(_ALONE_POLL_S)


@dataclass(slots=True)
class _Pending:
    """One result row on its way: refused already, or in the engine."""

    prompt: Prompt
    sample: int
    seed: int
    future: Future[Completion] | None
    code: str | None = None
    message: str | None = None


def _submit(worker: WorkerContext, job: JobFile, prompts: Iterable[Prompt], lease: HeldLease) -> list[_Pending]:
    """Hand all samples of some rows to the engine; a row that cannot be encoded is refused here."""
    pending = []
    for prompt in prompts:
        ids: list[int] = []
        code, message = prompt.error_code, prompt.error_message
        if code is None:
            try:
                ids = encode(worker, prompt)
            except TokenizeError as error:
                code, message = str(error.code), str(error)
        for sample in prompt.samples:
            given = prompt.sampling.seed
            seed = given if given is not None else default_seed(job.seed_root, prompt.row_index, sample)
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
        ids = worker.tokenizer.render(prompt.messages)
        chars = sum(len(message["content"]) for message in prompt.messages)
    else:
        ids = worker.tokenizer.encode(prompt.prompt or "")
        chars = len(prompt.prompt or "")
    worker.pace.prompt(chars, len(ids))
    return ids


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
    allowed = min(prompt.sampling.max_tokens, worker.engine.limits.max_length - completion.prompt_tokens)
    worker.pace.output(len(completion.token_ids), allowed)
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
        try:
            worker.require_lease(lease)
        except LeaseLostError:
            for request in lease.requests:
                request.cancelled = True
            raise
        with suppress(TimeoutError):
            return future.result(timeout=0.5)
    return future.result()
