"""The status of jobs: from the ledger while they live, from their manifests after that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import UTC, datetime

from pydantic import ValidationError

from jobs import layout
from jobs.errors import DamagedFileError, InputError, JobVersionError, RedisUnavailableError, UnknownJobError
from jobs.job_file import JobFile
from jobs.ledger import JobState, WorkerInfo
from jobs.records import job_ids, read_job, read_manifest
from jobs.recover import recover_job
from jobs.spec import Status
from jobs.status import BatchCounts, JobStatus, Rate, RowCounts, Running, ServingWorker, TokenCounts
from producer.connection import Connection

_log = logging.getLogger(__name__)

#: Workers that a status names, and jobs that an error does.
_NAMED_WORKERS = 8
_NAMED_JOBS = 10


def job_status(connection: Connection, job: str) -> JobStatus:
    """Raises UnknownJobError, InputError (no id), UnavailableError, DamagedFileError."""
    try:
        state = connection.ledger.job(job)
    except RedisUnavailableError:
        # A job that has ended needs no Redis: that of a local run is gone with the run.
        ended = ended_status(connection, job)
        if ended is None:
            raise
        return ended
    if state is not None:
        return _of_state(connection, state, connection.ledger.workers())
    ended = ended_status(connection, job)
    if ended is not None:
        return ended
    # Accepted, but unknown to the ledger: Redis was emptied, or the producer died before telling it.
    record = read_job(connection.store, job)
    recover_job(connection.store, connection.ledger, job)
    connection.send_first_permits(record.spec.model)
    state = connection.ledger.job(job)
    if state is None:
        raise UnknownJobError(f"job {job!r} was deleted while its status was read")
    return _of_state(connection, state, connection.ledger.workers())


def ended_status(connection: Connection, job: str) -> JobStatus | None:
    """The status of a job that has ended, from the store alone; None for one that lives. Raises UnknownJobError,
    DamagedFileError.
    """
    record = read_job(connection.store, job)
    manifest = read_manifest(connection.store, job)
    if manifest is None:
        return None
    try:
        return _of_manifest(connection, record, manifest)
    except (KeyError, ValidationError) as error:
        place = connection.store.locate(layout.manifest_file(job))
        raise DamagedFileError(f"{place} does not say all that a manifest says: it was changed") from error


def list_jobs(connection: Connection) -> tuple[list[JobStatus], list[str]]:
    """All jobs of the store, newest first, and the ids of those of which nothing can be said.

    These are live jobs where Redis cannot be reached, and jobs whose record is damaged or another version's.
    """
    found: dict[str, JobStatus] = {}
    untold: list[str] = []
    look_up: Callable[[Connection, str], JobStatus | None] = job_status
    try:
        workers = connection.ledger.workers()
        found = {state.id: _of_state(connection, state, workers) for state in connection.ledger.jobs()}
    except RedisUnavailableError as error:
        _log.warning("only ended jobs can be shown: %s", error)
        look_up = ended_status
    # Listed after the ledger was asked, which may know some that were deleted while it was away.
    there = list(job_ids(connection.store))
    found = {job: found[job] for job in there if job in found}
    for job in there:
        if job in found:
            continue
        try:
            status = look_up(connection, job)
        except (DamagedFileError, JobVersionError, UnknownJobError):
            status = None
        if status is None:
            untold.append(job)
        else:
            found[job] = status
    return sorted(found.values(), key=lambda status: status.created_at, reverse=True), untold


def chosen(
    jobs: Iterable[JobStatus],
    *,
    statuses: Collection[str] = (),
    model: str | None = None,
    labels: Mapping[str, str] | None = None,
    since: datetime | None = None,
) -> list[JobStatus]:
    """Those of ``jobs`` that are of one of these statuses and of this model, have all labels, and are so new."""
    wanted = (labels or {}).items()
    return [
        job
        for job in jobs
        if (not statuses or job.status in statuses)
        and model in (None, job.model)
        and wanted <= job.labels.items()
        and (since is None or job.created_at >= since)
    ]


def the_live_job(connection: Connection) -> str:
    """The id of the one job that lives. Raises InputError where none does, or several do."""
    live = sorted(
        (state for state in connection.ledger.jobs() if not state.status.ended),
        key=lambda state: state.created_at,
        reverse=True,
    )
    if not live:
        raise InputError(f"no job lives in the store {connection.store.uri}; `promptmill list` shows those that ended")
    if len(live) > 1:
        named = ", ".join(f"{state.id} ({state.status})" for state in live[:_NAMED_JOBS])
        more = f" and {len(live) - _NAMED_JOBS:,} more" if len(live) > _NAMED_JOBS else ""
        raise InputError(f"{len(live):,} jobs live, newest first: {named}{more}; name the one to watch")
    return live[0].id


def _serves(worker: WorkerInfo, state: JobState) -> bool:
    """Whether ``worker`` may claim batches of the job: once begun, it stays with its weights."""
    return worker.model == state.model and state.fingerprint in (None, worker.fingerprint) and reads(worker, state)


def reads(worker: WorkerInfo, state: JobState) -> bool:
    """Whether ``worker`` is of a version that reads the job's files."""
    return state.version in worker.reads


def standstill(state: JobState, workers: list[WorkerInfo]) -> tuple[str, str] | None:
    """Why none of the live workers of its model may claim a job in progress, and what to do; None where one may, or
    there is none.
    """
    workers = [worker for worker in workers if worker.model == state.model]
    if state.status is not Status.IN_PROGRESS or not workers or any(_serves(worker, state) for worker in workers):
        return None
    readers = [worker for worker in workers if reads(worker, state)]
    if not readers:
        versions = ", ".join(sorted({worker.version for worker in workers}))
        return (
            f"its files are of version {state.version}, which the live workers of {state.model!r} "
            f"(promptmill {versions}) do not read",
            "start one of the release that submitted it, or a later one",
        )
    begun = str(state.fingerprint)[:8]
    others = ", ".join(sorted({f"{w.fingerprint[:8]} ({w.dtype})" for w in readers}))
    return (
        f"begun with weights {begun}; the live workers of {state.model!r} have {others}",
        "start one with the model folder and dtype that began the job, or go on with these by "
        f"`promptmill cancel {state.id}` and `promptmill retry {state.id} --cancelled`",
    )


def _reason(state: JobState, workers: list[WorkerInfo]) -> str | None:
    """Why the job stands still, as far as it does not say so itself."""
    found = None if state.reason else standstill(state, workers)
    return ": ".join(found) if found else state.reason


def _of_state(connection: Connection, state: JobState, workers: list[WorkerInfo]) -> JobStatus:
    rows = RowCounts(
        total=state.total,
        completed=state.completed,
        failed=state.failed,
        cancelled=state.cancelled,
        expired=state.expired,
    )
    serving = [] if state.status.ended else [worker for worker in workers if _serves(worker, state)]
    return JobStatus(
        id=state.id,
        status=state.status,
        model=state.model,
        labels=state.labels,
        priority=state.priority,
        created_at=_time(state.created_at),
        started_at=_time(state.started_at) if state.started_at else None,
        ended_at=_time(state.ended_at) if state.ended_at else None,
        deadline=_time(state.deadline) if state.deadline else None,
        rows=rows,
        batches=BatchCounts(total=state.batches, done=state.done, running=state.running),
        tokens=TokenCounts(prompt=state.prompt_tokens, completion=state.completion_tokens),
        running=Running(rows=state.running_rows, tokens=state.running_tokens),
        workers=len(serving),
        serving=tuple(map(_serving, serving[:_NAMED_WORKERS])),
        rate=Rate(rows_per_s=round(state.rows_per_s, 3), tokens_per_s=round(state.tokens_per_s, 3)),
        eta_s=_eta(state) if serving else None,
        errors=state.errors,
        reason=_reason(state, workers),
        retry=state.retry,
        store=connection.store.uri,
        results=_results(connection, state.id) if state.status.ended and state.status is not Status.FAILED else None,
    )


def _serving(worker: WorkerInfo) -> ServingWorker:
    rows_per_s, tokens_per_s = round(worker.rows_per_s, 3), round(worker.tokens_per_s, 3)
    return ServingWorker(id=worker.id, device=worker.device, rows_per_s=rows_per_s, tokens_per_s=tokens_per_s)


def _eta(state: JobState) -> float | None:
    """Seconds to go at the current rate; rows that running batches have generated already count as done."""
    if state.status is not Status.IN_PROGRESS or state.rows_per_s <= 0:
        return None
    ended = state.completed + state.failed + state.cancelled + state.expired + state.running_rows
    return round(max(0, state.total - ended) / state.rows_per_s, 1)


def _of_manifest(connection: Connection, record: JobFile, manifest: dict[str, object]) -> JobStatus:
    return JobStatus.model_validate(
        {
            "id": record.id,
            "status": manifest["status"],
            "model": record.spec.model,
            "labels": record.spec.labels,
            "priority": record.spec.priority,
            "created_at": record.created_at,
            "ended_at": manifest["ended_at"],
            "deadline": record.spec.deadline,
            "rows": manifest["rows"],
            "batches": {"total": record.batches, "done": record.batches, "running": 0},
            "tokens": manifest["tokens"],
            "errors": manifest["errors"],
            "retry": record.retry,
            "store": connection.store.uri,
            "results": _results(connection, record.id),
        },
        strict=False,
    )


def _results(connection: Connection, job: str) -> str:
    return connection.store.locate(layout.results_prefix(job))


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
