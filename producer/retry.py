"""Retry: the rows of an ended job that failed are generated again, in a new job whose dataset holds all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import orjson

from jobs.errors import DamagedFileError, InputError, JobConflictError, UnknownJobError
from jobs.finalize import manifest_counts
from jobs.job_file import JobFile
from jobs.records import has_ended, is_deleted, read_job
from jobs.recover import manifest_status, recover_if_needed, recover_job
from jobs.results import STATUS_COUNTS, PartCounts
from jobs.spec import MAX_JOB_ID, Status
from jobs.store import Store
from producer.carrying import RetryStage, RowStatus
from producer.connection import Connection
from producer.status import job_status
from producer.submit import StageProgress, discard_stage, put_job


@dataclass(frozen=True, slots=True)
class Retried:
    """The outcome of a retry. ``job`` is None where there was nothing to retry.

    ``refused`` counts, by error code, the rows that cannot be tried again; ``left``, by status, those that were not
    asked for.
    """

    parent: JobFile
    job: JobFile | None
    existed: bool = False
    ended: bool = False
    refused: dict[str, int] = field(default_factory=dict)
    left: dict[str, int] = field(default_factory=dict)

    def to_json(self, store: Store) -> dict[str, Any]:
        """What ``retry --json`` prints; ``id`` is the parent's where there was nothing to retry."""
        job = self.job or self.parent
        retry = self.job.retry if self.job else None
        return {
            "id": job.id,
            "parent": self.parent.id,
            "rows": job.rows,
            "batches": job.batches,
            "retried": retry.retried if retry else 0,
            "carried": retry.carried.rows if retry else 0,
            "refused": self.refused,
            "store": store.uri,
            "existed": self.existed,
            "ended": self.ended,
        }


def retry(
    connection: Connection,
    job: str,
    *,
    cancelled: bool = False,
    expired: bool = False,
    again: bool = False,
    deadline: datetime | None = None,
    progress: StageProgress = lambda rows: None,
) -> Retried:
    """Have the failed rows of ``job``, and the cancelled or expired ones, generated again in a new job.

    The same retry again is the same job, unless it has ended and ``again`` is given. Raises UnknownJobError, InputError
    (``job`` has not ended), DamagedFileError (its dataset cannot be read), UnavailableError.
    """
    store, parent = connection.store, read_job(connection.store, job)
    chosen: tuple[tuple[RowStatus, bool], ...] = (("error", True), ("cancelled", cancelled), ("expired", expired))
    statuses = tuple(status for status, wanted in chosen if wanted)
    if not has_ended(store, job):
        raise _not_ended(connection, job)
    counts = manifest_counts(store, job)
    left = {name: rows for name in ("cancelled", "expired") if name not in statuses and (rows := getattr(counts, name))}
    digest = _digest(parent, statuses)
    if found := _find(store, parent, digest, again):
        done = _enqueued(connection, parent, found, None)
    elif _may_have_rows(store, parent, counts, statuses):
        done = _make(connection, RetryStage(store, parent, statuses), digest, deadline, again, progress)
    else:
        done = Retried(parent, None, ended=True, refused=counts.errors)
    return replace(done, left=left)


def _make(
    connection: Connection,
    stage: RetryStage,
    digest: str,
    deadline: datetime | None,
    again: bool,
    progress: StageProgress,
) -> Retried:
    """Stage a retry, accept it and tell the ledger."""
    store, parent = connection.store, stage.parent
    recover_if_needed(store, connection.ledger)
    connection.check_broker()
    try:
        stage.fill(progress)
        # Whoever deletes a job removes its record first: while that is there, no file of it was missing.
        read_job(store, parent.id)
    except BaseException as error:
        discard_stage(store, stage.name)
        if isinstance(error, DamagedFileError):
            read_job(store, parent.id)
        raise
    if not stage.retried:
        discard_stage(store, stage.name)
        return Retried(parent, None, ended=True, refused=dict(stage.refused))
    # A failure in there leaves open whether the job was accepted: its stage must stay.
    accepted = _accept(store, stage.job(digest, deadline), again)
    if accepted.stage != stage.name:
        discard_stage(store, stage.name)
        return _enqueued(connection, parent, accepted, None)
    return _enqueued(connection, parent, accepted, stage.parts, dict(stage.refused))


def _not_ended(connection: Connection, job: str) -> InputError:
    if job_status(connection, job).status is Status.FAILED:
        return InputError(
            f"job {job} has failed and has no dataset: `promptmill status {job}` says why, "
            f"`promptmill recover {job}` has it go on"
        )
    return InputError(
        f"job {job} has not ended: `promptmill watch {job}` waits for that, `promptmill cancel {job}` ends it"
    )


def _digest(parent: JobFile, statuses: tuple[RowStatus, ...]) -> str:
    """Of which rows of which job: what makes two retries the same work. An id is never used twice."""
    work = orjson.dumps({"retry": parent.id, "digest": parent.digest, "statuses": statuses})
    return hashlib.sha256(work).hexdigest()


def _may_have_rows(store: Store, parent: JobFile, counts: PartCounts, statuses: tuple[RowStatus, ...]) -> bool:
    """False where the manifest alone says that there is nothing to retry."""
    # Those that --skip-invalid let through are among the failed, unless the job was stopped before, or carried such
    # rows over from one that was.
    whole = parent.retry is None and manifest_status(store, parent.id) is Status.COMPLETED
    invalid = parent.invalid if whole else 0
    wanted: int = sum(getattr(counts, STATUS_COUNTS[status]) for status in statuses)
    return wanted > invalid


def _names(root: str) -> Iterator[str]:
    """The ids that retries of ``root`` may have."""
    number = 0
    while True:
        number += 1
        suffix = f"-r{number}"
        yield root[: MAX_JOB_ID - len(suffix)] + suffix


def _find(store: Store, parent: JobFile, digest: str, again: bool) -> JobFile | None:
    """The job that is this retry already."""
    for name in _names(parent.seed_root):
        try:
            found = read_job(store, name)
        except UnknownJobError:
            if is_deleted(store, name):
                continue
            return None
        if found.digest == digest and not (again and has_ended(store, name)):
            return found
    return None


def _accept(store: Store, staged: JobFile, again: bool) -> JobFile:
    """Put the record under the first free id; the record of another command that was quicker with the same retry."""
    for name in _names(staged.seed_root):
        mine = staged.model_copy(update={"id": name})
        try:
            found = put_job(store, mine)
        except JobConflictError:  # it is deleted, or is being so
            continue
        if found is None or found.stage == staged.stage:
            return mine
        if found.digest == staged.digest and not (again and has_ended(store, name)):
            return found
    raise AssertionError("unreachable: there is always another name")


def _enqueued(
    connection: Connection,
    parent: JobFile,
    job: JobFile,
    parts: dict[int, PartCounts] | None,
    refused: dict[str, int] | None = None,
) -> Retried:
    """Tell the ledger of an accepted retry, with the ``parts`` that were staged; None: it existed before."""
    ended = has_ended(connection.store, job.id)
    if parts is not None:
        connection.ledger.restore(job, parts)
    elif not ended:
        # The command before this one may have died before the ledger knew all of its parts.
        recover_job(connection.store, connection.ledger, job.id)
    if not ended:
        connection.send_first_permits(job.spec.model)
    return Retried(parent, job, parts is None, ended, refused or {})
