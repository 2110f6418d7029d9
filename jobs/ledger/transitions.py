"""Jobs: their beginning, their end, and what people do to them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from jobs.errors import InputError
from jobs.job_file import JobFile, Retry
from jobs.ledger.base import CHUNK, LedgerBase, chunks, unknown_job
from jobs.ledger.replies import text
from jobs.results import PartCounts
from jobs.spec import Status


class Transitions(LedgerBase):
    """What changes a job as a whole."""

    def accept(self, job: JobFile) -> bool:
        """Lists a job whose file is in the store. False if it was known already, in whatever state."""
        return self._accept(job, None)

    def _accept(self, job: JobFile, fingerprint: str | None) -> bool:
        spec = job.spec
        fields: dict[str, Any] = {
            "version": job.version,
            "model": spec.model,
            "stage": job.stage,
            "priority": spec.priority,
            "labels": orjson.dumps(spec.labels),
            "total": job.result_rows,
            "batches": job.batches,
            "cost": job.batch_cost,
            "max_error_rate": spec.max_error_rate,
            **({"fingerprint": fingerprint} if fingerprint else {}),
            **(_carried(job.retry) if job.retry else {}),
        }
        flat = [item for pair in fields.items() for item in pair]
        errors = orjson.dumps(job.retry.carried.errors if job.retry else {})
        times = _seconds(job.created_at), _seconds(spec.deadline)
        reply = self._scripts.run_twice("accept", job.id, *times, errors, *flat)
        return bool(reply)

    def restore(self, job: JobFile, done: dict[int, PartCounts], fingerprint: str | None = None) -> None:
        """Lists the job if it is unknown, and marks ``done`` the batches whose parts are in the store.

        A job that no worker has begun is pinned to the weights ``fingerprint``. Merges: what the ledger knows of
        the job stays, a batch that is done already is not counted again. Rows that a retry carried over are counted
        from its acceptance on.
        """
        pin = fingerprint or ""
        # Asked first: a Redis without memory refuses to accept, yet can note what is done.
        if self._scripts.run_twice("restore", job.id, pin) is None:
            self._accept(job, fingerprint)
        for chunk in chunks(iter(done.items())):
            flat = [item for batch, counts in chunk for item in (batch, orjson.dumps(counts.generated))]
            self._scripts.run_twice("restore", job.id, pin, *flat)

    def done(self, job: str) -> set[int]:
        """The finished batches of a live job; none of a job that is unknown or has ended."""
        return set(self._scripts.run_twice("done", job))

    def pause(self, job: str, reason: str | None = None) -> Status:
        """No more claims; leased batches go on. Raises UnknownJobError, InputError if the job is ending."""
        return self._steer("pause", job, "paused", reason or "")

    def resume(self, job: str) -> Status:
        """Claims go on; rows that failed before no longer count to the error rate. Raises as ``pause``."""
        return self._steer("resume", job, "resumed")

    def priority(self, job: str, n: int) -> Status:
        """From the next claim on the job has the weight 2**n. Raises UnknownJobError and InputError."""
        if not -5 <= n <= 5:
            raise InputError(f"priority {n} is not allowed: give a number from -5 to 5")
        return self._steer("priority", job, "given a priority", n)

    def _steer(self, name: str, job: str, done: str, *args: Any) -> Status:
        reply = self._scripts.run_twice(name, job, *args)
        if not reply:
            raise unknown_job(job)
        allowed, status = int(reply[0]), Status(text(reply[1]))
        if not allowed:
            raise InputError(f"job {job} is {status} and can no longer be {done}")
        return status

    def cancel(self, job: str) -> Status:
        """The job's status from now on: cancelling, unless its batches are all done or it has ended.

        Raises UnknownJobError.
        """
        return self._stop(job, Status.CANCELLED)

    def expire(self, job: str) -> Status:
        """As ``cancel``, for a job whose deadline has passed: it will end as expired."""
        return self._stop(job, Status.EXPIRED)

    def _stop(self, job: str, ending: Status) -> Status:
        reply = self._scripts.run_twice("stop", job, ending)
        if reply is None:
            raise unknown_job(job)
        return Status(text(reply))

    def finalized(self, job: str, ending: Status, counts: PartCounts, token: str | None) -> None:
        """The job's dataset is whole: it ends, and a summary remains for 7 days.

        Accepted from anyone, whoever holds the lease (``token`` is not compared): the store is the truth.
        """
        del token
        self._scripts.run_twice("finalized", job, ending, orjson.dumps(counts), orjson.dumps(counts.errors))

    def reopen(self, job: str, batches: list[int], counts: PartCounts) -> bool:
        """Has finished batches of a finalizing job done again; ``counts`` are those of the parts that remain.

        False if the job is not finalizing: nothing is changed then.
        """
        reply = self._scripts.run_twice(
            "reopen", job, orjson.dumps(counts), orjson.dumps(counts.errors), *batches[:CHUNK]
        )
        return bool(reply)

    def fail(self, job: str, reason: str) -> None:
        """Ends a job that cannot run at all: its job file or input cannot be read."""
        self._scripts.run_twice("fail", job, reason)

    def forget(self, job: str) -> None:
        """Removes everything of a job."""
        self._scripts.run_twice("forget", job)


def _carried(retry: Retry) -> dict[str, Any]:
    """The fields of a retry. What it carried over is done, and was judged in the job that generated it."""
    counts = retry.carried.model_dump(exclude={"errors"})
    base = {
        "base_completed": retry.carried.completed,
        "base_failed": retry.carried.failed,
        "base_errors": orjson.dumps(retry.carried.errors),
    }
    return {**counts, **base, "retry": retry.model_dump_json()}


def _seconds(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment.timestamp():.6f}"
