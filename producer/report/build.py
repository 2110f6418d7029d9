"""A report of a job: its figures from the dataset, or from the finished parts while there is none."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pyarrow as pa

from jobs.errors import DamagedFileError, NotFoundError
from jobs.job_file import JobFile
from jobs.parts import list_parts
from jobs.records import has_ended, read_job, read_manifest
from jobs.results import read_part
from jobs.spec import Status, now
from jobs.store import Store
from producer.connection import Connection
from producer.report.figures import COLUMNS, FigureCounter
from producer.report.model import Figures, Report
from producer.results import dataset_tables
from producer.status import job_status

#: States in which rows are, or will be, generated: a timeline goes on to now.
_GOING_ON = (Status.IN_PROGRESS, Status.PAUSED)


def build_report(connection: Connection, job: str) -> Report:
    """The report of ``job`` as it is now. Raises UnknownJobError, UnavailableError, DamagedFileError."""
    record, made_at = read_job(connection.store, job), now()
    status = job_status(connection, job)
    until = made_at if status.status in _GOING_ON else None
    figures, whole = _figures(connection.store, record, until)
    if whole and not status.status.ended:
        status = job_status(connection, job)  # it has ended meanwhile
    manifest: dict[str, Any] = (read_manifest(connection.store, job) or {}) if whole else {}
    return Report(
        made_at=made_at,
        status=status,
        job=record,
        partial=not whole,
        figures=figures,
        engine=manifest.get("engine", {}),
        files=tuple(manifest.get("files", ())),
    )


def _figures(store: Store, job: JobFile, until: datetime | None) -> tuple[Figures, bool]:
    """The figures, and whether they are those of the whole dataset."""
    if not has_ended(store, job.id):
        try:
            return _added_up(job, _part_tables(store, job), until), False
        except NotFoundError:
            # The job ended while its parts were read: they are gone, and the dataset is there.
            if not has_ended(store, job.id):
                raise DamagedFileError(f"job {job.id}: a part was removed while it was read; try again") from None
    return _added_up(job, dataset_tables(store, job, COLUMNS), None), True


def _added_up(job: JobFile, tables: Iterator[pa.Table], until: datetime | None) -> Figures:
    counter = FigureCounter(job.created_at)
    for table in tables:
        counter.add(table)
    return counter.figures(until)


def _part_tables(store: Store, job: JobFile) -> Iterator[pa.Table]:
    """The finished parts; what cannot be read will be generated again, and is passed over. Raises NotFoundError."""
    for path in list_parts(store, job.stage).values():
        try:
            yield read_part(store.get(path)).select(COLUMNS)
        except DamagedFileError:
            continue
