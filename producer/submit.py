"""The producer's half of a prompt's path: check, stage, accept, enqueue."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jobs import __version__, layout
from jobs.errors import JobConflictError, UnknownJobError
from jobs.job_file import JobFile, default_job_id
from jobs.records import has_ended, is_deleted, read_job
from jobs.recover import recover_if_needed, recover_job
from jobs.spec import JobSpec, check_job_id, now
from jobs.stages import new_stage
from jobs.store import Store
from jobs.telemetry.tracing import moment, span
from producer.batches import BatchBuilder
from producer.check import Checking, CheckReport
from producer.connection import Connection
from producer.rows import RowOptions
from producer.sources import Source
from producer.stage_writer import StageWriter
from producer.tokens import Meter

_log = logging.getLogger(__name__)

#: Called with the rows staged so far.
StageProgress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job in the store. ``existed`` says that the same work was accepted before, ``ended`` that it is done."""

    job: JobFile
    report: CheckReport
    existed: bool
    ended: bool

    def to_json(self, store: Store) -> dict[str, Any]:
        """What ``submit --json`` prints."""
        return {
            "id": self.job.id,
            "rows": self.job.rows,
            "batches": self.job.batches,
            "invalid": self.job.invalid,
            "store": store.uri,
            "existed": self.existed,
            "ended": self.ended,
        }


def submit(
    connection: Connection,
    source: Source,
    options: RowOptions,
    spec: JobSpec,
    *,
    job_id: str | None = None,
    skip_invalid: bool = False,
    again: bool = False,
    progress: StageProgress = lambda rows: None,
    meter: Meter | None = None,
) -> Submitted:
    """Check and stage the rows of ``source``, accept them as a job, and start its permits.

    Nothing is accepted unless every row is good, or ``skip_invalid`` and some are. ``meter`` is shown the good
    ones. Raises SourceError, InputError, JobConflictError, UnavailableError.
    """
    if job_id is not None:
        check_job_id(job_id)
    began = moment()
    recover_if_needed(connection.store, connection.ledger)
    connection.check_broker()
    stage = new_stage()
    try:
        staged, report = stage_source(
            connection.store, source, options, spec, stage, skip_invalid=skip_invalid, progress=progress, meter=meter
        )
    except BaseException:
        discard_stage(connection.store, stage)
        raise
    try:
        job, existed = _accept(connection.store, staged, job_id, again)
    except JobConflictError:
        discard_stage(connection.store, stage)
        raise
    # Any other failure in there leaves open whether the job was accepted: its stage must stay. If no job names
    # it, upkeep removes it in a week.
    if existed:
        discard_stage(connection.store, stage)
    with span("submit", connection.store.id, job.id, began, model=spec.model, rows=job.rows):
        ended = has_ended(connection.store, job.id)
        if not ended:
            enqueue(connection, job, existed)
    return Submitted(job, report, existed, ended)


def enqueue(connection: Connection, job: JobFile, existed: bool = False) -> None:
    """Tell the ledger of an accepted job and start its chain of permits.

    A ledger that cannot be told any more learns of the job from the next upkeep: it is accepted all the same.
    """
    if existed and connection.ledger.job(job.id) is None:
        recover_job(connection.store, connection.ledger, job.id)
    else:
        connection.ledger.accept(job)
    connection.send_first_permits(job.spec.model)


def discard_stage(store: Store, stage: str) -> None:
    """Remove the files of a stage that no job names."""
    try:
        store.delete([item.path for item in store.list(layout.stage_prefix(stage))])
    except Exception as error:
        # The failure that led here matters more; upkeep removes stages that no job names.
        _log.debug("stage %s is left behind: %s", stage, error)


def stage_source(
    store: Store,
    source: Source,
    options: RowOptions,
    spec: JobSpec,
    stage: str,
    *,
    skip_invalid: bool = False,
    progress: StageProgress = lambda rows: None,
    meter: Meter | None = None,
) -> tuple[JobFile, CheckReport]:
    """Write the input batches; the job as it would be accepted, under its default id.

    Raises SourceError, InputError, StoreUnavailableError; what was written by then stays.
    """
    checking = Checking(source, options, batch_size=spec.batch_size, skip_invalid=skip_invalid, meter=meter)
    builder = BatchBuilder(spec.batch_size, source.types)
    with StageWriter(store, stage) as writer:
        for batch in builder.batches(checking.blocks()):
            writer.put(batch)
            progress(builder.totals.rows)
    checking.report.raise_if_bad()
    digest, totals = builder.digest(spec.identity()), builder.totals
    job = JobFile(
        id=default_job_id(digest),
        stage=stage,
        created_at=now(),
        spec=spec,
        digest=digest,
        rows=totals.rows,
        result_rows=totals.result_rows,
        batches=totals.batches,
        invalid=totals.invalid,
        max_tokens_total=totals.max_tokens,
        columns=builder.columns(),
        producer_version=__version__,
    )
    return job, checking.report


def _accept(store: Store, staged: JobFile, job_id: str | None, again: bool) -> tuple[JobFile, bool]:
    """Put the job's record: the job, and whether it was there before. Raises JobConflictError."""
    first = job_id or staged.id
    attempt = 1
    while True:
        name = first if attempt == 1 else f"{first}-{attempt}"
        if again and is_deleted(store, check_job_id(name)):
            attempt += 1
            continue
        found = put_job(store, staged.model_copy(update={"id": check_job_id(name)}))
        if found is None:
            return staged.model_copy(update={"id": name}), False
        if found.stage == staged.stage:  # our own put, whose answer was lost and which was then repeated
            return found, False
        if found.digest != staged.digest:
            raise JobConflictError(f"job id {name!r} is taken by other work in {store.uri}: choose another --job-id")
        if not again or not has_ended(store, name):
            return found, True
        attempt += 1


def put_job(store: Store, job: JobFile) -> JobFile | None:
    """Accept ``job``; None if that was done, else the job that has its id already. Raises JobConflictError."""
    if is_deleted(store, job.id):
        raise JobConflictError(
            f"job id {job.id!r} was used by a job that is deleted: choose another --job-id, or give --again"
        )
    if store.put_if_absent(layout.job_file(job.id), job.to_bytes()):
        return None
    try:
        return read_job(store, job.id)
    except UnknownJobError:
        raise JobConflictError(f"job {job.id!r} is being deleted: try again, or choose another --job-id") from None
