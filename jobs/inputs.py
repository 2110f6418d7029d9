"""What a batch has to generate, as worker and finalizer see it, and its part where nobody can or did.

The batch of a retry has, beside its input, a file of the result rows that are carried over from the parent's dataset;
its footer lists the samples to generate, so that each is known even if the input is lost.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import orjson
import pyarrow as pa

from jobs import layout
from jobs.errors import DamagedFileError, NotFoundError
from jobs.job_file import JobFile
from jobs.parquet import read_parquet, to_parquet
from jobs.prompts import InputBatch, read_batch
from jobs.results import ResultRow, result_schema, write_part
from jobs.spec import RowError
from jobs.store import Store

_log = logging.getLogger(__name__)

_SAMPLES_KEY = b"promptmill.samples"


@dataclass(frozen=True, slots=True)
class Carried:
    """Of a retry's batch: the result rows that stay as they are, and the samples to generate, by row_index."""

    rows: pa.Table
    samples: dict[int, tuple[int, ...]]


def write_carried(carried: Carried) -> bytes:
    """The bytes of ``layout.carried_batch``."""
    samples = orjson.dumps(list(carried.samples.items()))
    return to_parquet(carried.rows.replace_schema_metadata({_SAMPLES_KEY: samples}))


def read_carried(store: Store, job: JobFile, batch: int) -> Carried | None:
    """What a retry carries over in ``batch``; None for a job that is no retry, and where it cannot be read any more.

    Then all rows are generated again, as they are where a part is damaged.
    """
    if job.retry is None:
        return None
    path = layout.carried_batch(job.stage, batch)
    try:
        table = read_parquet(store.get(path))
        pairs = orjson.loads((table.schema.metadata or {})[_SAMPLES_KEY])
        samples = {int(row): tuple(chosen) for row, chosen in pairs}
        rows = table.cast(result_schema(job.columns))
        own = job.batch_rows(batch)
        if {*rows["row_index"].to_pylist(), *samples} != set(own):
            raise ValueError("it holds the rows of another batch")
        return Carried(rows, samples)
    except NotFoundError:
        store.require()
        return None
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        _log.error("%s cannot be read, the rows in it are generated again: %s", store.locate(path), error)
        return None


def read_input(store: Store, job: JobFile, batch: int) -> InputBatch:
    """The rows of a batch. Raises DamagedFileError where they are gone, cannot be read, or are another batch's."""
    path = layout.input_batch(job.stage, batch)
    try:
        found = read_batch(store.get(path), job.spec.sampling)
    except NotFoundError as error:
        raise DamagedFileError(str(error)) from error
    if [prompt.row_index for prompt in found.prompts] != list(job.batch_rows(batch)):
        raise DamagedFileError(f"{store.locate(path)} holds the rows of another batch")
    carried = read_carried(store, job, batch)
    if carried is None:
        return found
    prompts = [
        replace(prompt, chosen=carried.samples[prompt.row_index])
        for prompt in found.prompts
        if prompt.row_index in carried.samples
    ]
    return InputBatch(prompts, found.columns, carried.rows)


def lost_batch(store: Store, job: JobFile, batch: int, reason: str) -> bytes:
    """The part of a batch whose input cannot be read: an ``input_lost`` row for each of its rows.

    For a retry's, one for each sample that was to be generated, and the rows that are carried over.
    """
    carried = read_carried(store, job, batch)
    samples = dict.fromkeys(job.batch_rows(batch), (0,)) if carried is None else carried.samples
    rows = [
        ResultRow(
            row_index=index,
            sample_index=sample,
            custom_id=None,
            status="error",
            error_code=RowError.INPUT_LOST,
            error_message=reason[:500],
            finish_reason="error",
            model=job.spec.model,
        )
        for index, chosen in samples.items()
        for sample in chosen
    ]
    first = job.batch_rows(batch).start
    return write_part(rows, pa.table({}), job.columns, first, None if carried is None else carried.rows)


def unrun_batch(job: JobFile, batch: int, source: InputBatch, status: str) -> bytes:
    """The part of a batch that nobody ran: every sample to generate has ``status``."""
    rows = [
        ResultRow(prompt.row_index, sample, prompt.custom_id, status, model=job.spec.model)
        for prompt in source.prompts
        for sample in prompt.samples
    ]
    return write_part(rows, source.columns, job.columns, job.batch_rows(batch).start, source.carried)
