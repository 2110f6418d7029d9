"""Ended jobs with rows to retry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from jobs.finalize import finalize
from jobs.inputs import read_input
from jobs.job_file import Retry
from jobs.parts import commit_part
from jobs.recover import recover_job
from jobs.results import ResultRow, write_part
from jobs.spec import Status
from producer import Job
from producer.retry import Retried

if TYPE_CHECKING:
    from .conftest import Bench


Prompts = Callable[[int], list[dict[str, Any]]]
Key = tuple[int, int]


def bad_at(rows: list[dict[str, Any]], *bad: int) -> list[Mapping[str, Any]]:
    """The rows with the word in some of them that has a fake engine fail."""
    return [{**row, "prompt": f"apple {row['prompt']}"} if at in bad else row for at, row in enumerate(rows)]


def failed_job(bench: Bench, rows: list[Mapping[str, Any]], **flags: Any) -> Job:
    """A job that has ended, in which the rows with an apple have failed."""
    job = bench.submit(rows, **flags)
    assert bench.run(bench.worker("w-first", fail_on="apple"), job).status is Status.COMPLETED
    return job


def ended_with(bench: Bench, rows: list[Mapping[str, Any]], statuses: Mapping[Key, str], **flags: Any) -> Job:
    """A job that has ended with these statuses, ``ok`` where none is given and the row is valid."""
    job = bench.submit(rows, **flags)
    record = bench.record(job)
    for batch in range(record.batches):
        source = read_input(bench.store, record, batch)
        made = [
            _row((prompt.row_index, sample), statuses.get((prompt.row_index, sample), "ok"), prompt.error_code)
            for prompt in source.prompts
            for sample in prompt.samples
        ]
        part = write_part(made, source.columns, record.columns, record.batch_rows(batch).start)
        commit_part(bench.store, record, batch, part)
    finalize(bench.store, record, Status.COMPLETED)
    assert not recover_job(bench.store, bench.ledger, job.id)
    return job


def _row(key: Key, status: str, invalid: str | None) -> ResultRow:
    if status == "error" or invalid is not None:
        return ResultRow(*key, None, "error", error_code=invalid or "numeric_error")
    good = {"text": f"good {key}", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 4, "seed": 5}
    values: dict[str, Any] = good if status == "ok" else {}
    return ResultRow(*key, None, status, **values)


def by_key(rows: list[dict[str, Any]]) -> dict[Key, dict[str, Any]]:
    return {(row["row_index"], row["sample_index"]): row for row in rows}


def retried(bench: Bench, job: Job, **flags: bool) -> Retried:
    from producer.retry import retry

    return retry(bench.client._connection, job.id, **flags)


def lineage(bench: Bench, job: Job) -> Retry:
    found = bench.record(job).retry
    assert found is not None
    return found
