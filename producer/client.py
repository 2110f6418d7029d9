"""The Python API: ``from producer import Client``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from jobs.deletion import delete_job
from jobs.errors import InputError, JobNotCompletedError
from jobs.settings import Settings
from jobs.spec import JobSpec, JobStatus, SamplingParams, Status, split_model, validated
from producer.connection import Connection
from producer.results import open_dataset
from producer.retry import retry
from producer.rows import RowOptions
from producer.sources import Source, open_source, rows_source, table_source
from producer.status import job_status, list_jobs
from producer.submit import submit
from producer.template import Template
from producer.tend import cancel_job
from producer.watch import make_display, statuses, watch

if TYPE_CHECKING:
    import pyarrow.dataset as ds

#: Rows: dicts, an Arrow table or reader, a pandas or Polars frame; or the path of a source.
Rows = Iterable[Mapping[str, Any]] | str | PathLike[str] | Any


class Job:
    """A job in the store."""

    def __init__(self, connection: Connection, job: str) -> None:
        self._connection = connection
        self.id = job

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> JobStatus:
        """Raises UnknownJobError, UnavailableError."""
        return job_status(self._connection, self.id)

    def wait(self, progress: bool = False, allow_failed: bool = True) -> JobStatus:
        """Wait until the job has ended; ``progress`` shows a bar.

        Raises JobNotCompletedError if it ended otherwise than completed, or, unless ``allow_failed``, if rows
        have failed.
        """
        if progress:
            status = watch(self._connection, self.id, make_display())
        else:
            for status in statuses(self._connection, self.id):  # noqa: B007
                pass
        if status.status is not Status.COMPLETED:
            raise JobNotCompletedError(f"job {self.id} ended {status.status}: {status.reason or 'see its results'}")
        if status.rows.failed and not allow_failed:
            raise JobNotCompletedError(f"job {self.id}: {status.rows.failed} rows have failed: {status.errors}")
        return status

    def cancel(self) -> JobStatus:
        """Stop the job; finished rows stay in its results."""
        return cancel_job(self._connection, self.id)

    def retry(self, *, cancelled: bool = False, expired: bool = False, again: bool = False) -> Job:
        """A new job that generates the failed rows again and has the others as they are; this one, if there are none.

        With ``cancelled`` and ``expired`` those rows too. Raises InputError while the job has not ended.
        """
        done = retry(self._connection, self.id, cancelled=cancelled, expired=expired, again=again)
        return Job(self._connection, done.job.id) if done.job else self

    def delete(self) -> None:
        """Remove the job, its results and all its files, for good. Raises UnavailableError."""
        delete_job(self._connection.store, self.id, self._connection.ledger.forget)

    def results(self) -> ds.Dataset:
        """The dataset. Raises JobNotCompletedError while the job has not ended."""
        return open_dataset(self._connection.store, self.id)


class Client:
    """Submits jobs to one store and reads their results.

    Settings that are not given come from the environment (``PROMPTMILL_REDIS_URL``, ``PROMPTMILL_STORE``).
    Use as a context manager, or call ``close``.
    """

    def __init__(self, redis_url: str | None = None, store: str | PathLike[str] | None = None) -> None:
        place = None if store is None else fspath(store)
        self._connection = Connection(Settings.load(redis_url=redis_url, store=place), create=True)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def submit(
        self,
        rows: Rows,
        *,
        model: str,
        template: str | None = None,
        prompt_column: str | None = None,
        messages_column: str | None = None,
        id_column: str | None = None,
        system: str | None = None,
        chat: bool = False,
        job_id: str | None = None,
        priority: int = 0,
        labels: Mapping[str, str] | None = None,
        batch_size: int = 256,
        max_error_rate: float = 0.5,
        skip_invalid: bool = False,
        again: bool = False,
        **sampling: Any,
    ) -> Job:
        """Submit ``rows`` as one job; ``sampling`` are fields of SamplingParams (``max_tokens=60`` ...).

        The same rows with the same parameters are the same job. Raises SourceError, InputError,
        JobConflictError, UnavailableError.
        """
        if unknown := set(sampling) - set(SamplingParams.model_fields):
            raise InputError(f"submit() knows no parameter {min(unknown)!r}")
        params = validated(SamplingParams, sampling)
        given = {
            "model": split_model(model)[0],
            "sampling": params,
            "template": template,
            "chat": chat,
            "system": system,
            "priority": priority,
            "labels": dict(labels or {}),
            "batch_size": batch_size,
            "max_error_rate": max_error_rate,
        }
        spec = validated(JobSpec, given)
        options = RowOptions(
            template=Template.parse(template) if template is not None else None,
            prompt_column=prompt_column,
            messages_column=messages_column,
            id_column=id_column,
            system=system,
            chat=chat,
            sampling=params,
        )
        source = _source(rows)
        submitted = submit(
            self._connection, source, options, spec, job_id=job_id, skip_invalid=skip_invalid, again=again
        )
        return Job(self._connection, submitted.job.id)

    def job(self, job: str) -> Job:
        """The job of that id. Raises UnknownJobError."""
        job_status(self._connection, job)
        return Job(self._connection, job)

    def jobs(self) -> list[JobStatus]:
        """All jobs of the store, newest first."""
        return list_jobs(self._connection)[0]


def _source(rows: Any) -> Source:
    if isinstance(rows, str | PathLike):
        return open_source(fspath(rows))
    if hasattr(rows, "__arrow_c_stream__"):
        return table_source(rows)
    if isinstance(rows, Iterable):
        return rows_source(rows)
    raise InputError(f"cannot read rows from {type(rows).__name__}: give dicts, a table, a data frame or a path")
