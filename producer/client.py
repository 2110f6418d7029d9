"""The Python API: ``from producer import Client``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from jobs.deletion import delete_job
from jobs.errors import InputError, JobNotCompletedError
from jobs.settings import Settings
from jobs.spec import JobSpec, SamplingParams, Status, now, split_model, validated
from jobs.status import JobStatus
from producer.connection import Connection
from producer.export import Exported, Selection, export, format_of
from producer.frames import Rows, source_of
from producer.interactive import interruptible, notebook_display
from producer.results import open_dataset, read_results
from producer.retry import retry
from producer.rows import RowOptions
from producer.status import chosen, job_status, list_jobs
from producer.submit import submit
from producer.template import Template
from producer.tend import cancel_job, pause_job, resume_job, set_priority
from producer.watch import make_display, statuses, watch

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow.dataset as ds


class Sampling(TypedDict, total=False):
    """The sampling parameters of ``Client.submit``; what each means is in SamplingParams."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    seed: int | None
    n: int
    logprobs: bool


class Job:
    """A job in the store.

    All methods raise UnknownJobError once it is deleted, and UnavailableError where Redis or the store cannot be
    reached; a job that has ended needs no Redis.
    """

    def __init__(self, connection: Connection, job: str) -> None:
        self._connection = connection
        self.id = job

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    def status(self) -> JobStatus:
        """Counts, rate, ETA and errors."""
        return job_status(self._connection, self.id)

    def wait(self, progress: bool = False, allow_failed: bool = True) -> JobStatus:
        """Wait until the job has ended; ``progress`` shows a bar, in notebooks below the cell.

        Raises JobNotCompletedError if it ended otherwise than completed, or, unless ``allow_failed``, if rows
        have failed. Ctrl-C leaves the job running and raises Interrupted, a KeyboardInterrupt.
        """
        with interruptible(f"the job goes on; Client().job({self.id!r}).wait() comes back to it, .cancel() ends it"):
            if progress:
                status = watch(self._connection, self.id, notebook_display() or make_display())
            else:
                for status in statuses(self._connection, self.id):  # noqa: B007
                    pass
        if status.status is Status.PAUSED:
            raise JobNotCompletedError(f"job {self.id} has paused itself: {status.reason}; resume() goes on")
        if status.status is not Status.COMPLETED:
            raise JobNotCompletedError(f"job {self.id} ended {status.status}: {status.reason or 'see its results'}")
        if status.rows.failed and not allow_failed:
            raise JobNotCompletedError(f"job {self.id}: {status.rows.failed} rows have failed: {status.errors}")
        return status

    def pause(self) -> JobStatus:
        """Start no more batches; those that run are finished. Raises InputError if the job is ending."""
        return pause_job(self._connection, self.id)

    def resume(self) -> JobStatus:
        """Go on after a pause. Raises InputError if the job is ending."""
        return resume_job(self._connection, self.id)

    def set_priority(self, priority: int) -> JobStatus:
        """Give the job another share of the workers: -5 to 5, each step doubles it. Raises InputError."""
        return set_priority(self._connection, self.id, priority)

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

    def to_pandas(self, dtype_backend: Literal["numpy_nullable", "pyarrow"] | None = None) -> pd.DataFrame:
        """The results as a pandas frame; ``dtype_backend`` as in ``pandas.read_parquet``. Raises as ``results``.

        By default pandas makes floats of integer columns with nulls; ``"pyarrow"`` keeps every type.
        """
        import pandas as pd

        table = self.results().to_table()
        if dtype_backend == "pyarrow":
            return table.to_pandas(types_mapper=pd.ArrowDtype)
        frame: pd.DataFrame = table.to_pandas()
        return frame if dtype_backend is None else frame.convert_dtypes(dtype_backend=dtype_backend)

    def to_polars(self) -> pl.DataFrame:
        """The results as a Polars frame. Raises as ``results``."""
        import polars as pl

        frame = pl.from_arrow(self.results().to_table())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def iter_rows(self, partial: bool = False) -> Iterator[dict[str, Any]]:
        """The result rows as dicts, in the order of the source, read as they are taken.

        With ``partial`` those that are finished of a job that still runs, else raises as ``results``.
        """
        batches = read_results(self._connection.store, self.id, partial=partial)
        return (row for batch in batches for row in batch.to_pylist())

    def export(
        self,
        to: str | PathLike[str],
        format: Literal["parquet", "jsonl", "csv", "tsv", "openai"] | None = None,
        *,
        partial: bool = False,
        columns: Sequence[str] | None = None,
        status: Literal["ok", "error", "cancelled", "expired"] | None = None,
        escape: bool = True,
    ) -> Exported:
        """Write the result rows to a file, as ``promptmill results JOB --to FILE`` does; how many they were.

        Raises InputError where the file cannot be written, or has no such column, else as ``iter_rows``.
        """
        selection = Selection(partial, None if columns is None else tuple(columns), status)
        target = fspath(to)
        return export(self._connection.store, self.id, target, format_of(target, format), selection, escape=escape)


class Client:
    """Submits jobs to one store and reads their results.

    Settings that are not given come from the environment (``PROMPTMILL_REDIS_URL``, ``PROMPTMILL_STORE``).
    Use as a context manager, or call ``close``. Raises InputError and UnavailableError.
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
        keep_columns: Sequence[str] | None = None,
        drop_columns: Sequence[str] = (),
        format: str | None = None,
        job_id: str | None = None,
        priority: int = 0,
        deadline: datetime | timedelta | None = None,
        labels: Mapping[str, str] | None = None,
        batch_size: int = 256,
        max_error_rate: float = 0.5,
        skip_invalid: bool = False,
        again: bool = False,
        **sampling: Unpack[Sampling],
    ) -> Job:
        """Submit ``rows`` as one job; the parameters are those of ``promptmill submit``.

        ``rows`` are dicts (a generator is read once and never held), an Arrow table or reader, a pandas or Polars
        frame, or the path of a source, whose ``format`` its extension tells. The same rows with the same parameters
        are the same job. Raises SourceError, InputError, JobConflictError, UnavailableError, and Interrupted, a
        KeyboardInterrupt, on Ctrl-C.
        """
        if unknown := set(sampling) - set(SamplingParams.model_fields):
            raise InputError(f"submit() knows no parameter {min(unknown)!r}")
        if keep_columns is not None and drop_columns:
            raise InputError("keep_columns and drop_columns exclude each other: give one of them")
        stop = sampling.get("stop", ())
        params = validated(SamplingParams, {**sampling, "stop": (stop,) if isinstance(stop, str) else stop})
        given = {
            "model": split_model(model)[0],
            "sampling": params,
            "template": template,
            "chat": chat,
            "system": system,
            "priority": priority,
            "deadline": _when(deadline),
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
            keep_columns=None if keep_columns is None else tuple(keep_columns),
            drop_columns=tuple(drop_columns),
        )
        with interruptible("submit the same rows again: whatever was accepted, they are one job"):
            source = source_of(rows, format)
            submitted = submit(
                self._connection, source, options, spec, job_id=job_id, skip_invalid=skip_invalid, again=again
            )
        return Job(self._connection, submitted.job.id)

    def job(self, job: str) -> Job:
        """The job of that id. Raises UnknownJobError, UnavailableError."""
        job_status(self._connection, job)
        return Job(self._connection, job)

    def jobs(
        self,
        *,
        status: Status | str | None = None,
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> list[JobStatus]:
        """The jobs of the store, newest first: all, or those of a status or model, or with all of these labels."""
        every, _ = list_jobs(self._connection)
        return chosen(every, statuses=() if status is None else (status,), model=model, labels=labels)


def _when(deadline: datetime | timedelta | None) -> datetime | None:
    """When that is. Raises InputError for a time without its zone, or that has passed."""
    if deadline is None:
        return None
    when = now() + deadline if isinstance(deadline, timedelta) else deadline
    if when.tzinfo is None:
        raise InputError(f"deadline {when}: the time lacks its zone; use datetime.now(UTC), or a timedelta")
    if when <= now():
        raise InputError(f"deadline {when} has already passed")
    return when
