"""From what Redis answers to the types of model.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import orjson

from jobs.job_file import JOB_VERSION, Retry
from jobs.ledger.model import Claim, JobState, Shown, WorkerInfo
from jobs.spec import Status

#: Seconds without a finished batch after which a job's rate is 0.
RATE_IDLE_S = 120.0


def text(value: Any) -> str:
    """A reply as str, whether or not the client decodes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def mapping(pairs: Iterable[Any]) -> dict[str, str]:
    """A hash that a script returned flat."""
    flat = [text(item) for item in pairs]
    return dict(zip(flat[::2], flat[1::2], strict=True))


def claim(reply: bytes | str | None) -> Claim | None:
    """What claim.lua and claim_finalize.lua answer: a Claim's fields as JSON, some of them only where they differ."""
    if reply is None:
        return None
    fields = orjson.loads(reply)
    # Lua's JSON writes an empty table as an object or as an array.
    crashes = {int(row): int(count) for row, count in dict(fields.pop("crashes", {})).items() if count}
    batch, ending = int(fields.pop("batch")), Status(fields.pop("ending", Status.COMPLETED))
    return Claim(batch=batch, ending=ending, crashes=crashes, **fields)


def job_state(job: str, now: float, reply: list[Any]) -> JobState | None:
    """One answer of state.lua; None for an unknown job, and for one that somebody else wrote: the others are shown."""
    try:
        return _job_state(job, now, reply)
    except (LookupError, TypeError, ValueError):
        return None


def _job_state(job: str, now: float, reply: list[Any]) -> JobState | None:
    fields, live_errors, leases = mapping(reply[0]), mapping(reply[1]), [text(item) for item in reply[2]]
    if not fields:
        return None
    errors = {code: int(rows) for code, rows in live_errors.items()}
    if "errors" in fields:  # The job has ended: they are part of its summary.
        errors = orjson.loads(fields["errors"])
    rows_per_s, tokens_per_s = _rate(fields, now)
    running = [lease.split("|", 4) for lease in leases]
    return JobState(
        id=job,
        status=Status(fields["status"]),
        model=fields["model"],
        stage=fields["stage"],
        priority=int(fields["priority"]),
        labels=orjson.loads(fields["labels"]),
        created_at=float(fields["created_at"]),
        started_at=_time(fields, "started_at"),
        ended_at=_time(fields, "ended_at"),
        deadline=_time(fields, "deadline"),
        total=int(fields["total"]),
        completed=int(fields["completed"]),
        failed=int(fields["failed"]),
        cancelled=int(fields["cancelled"]),
        expired=int(fields["expired"]),
        batches=int(fields["batches"]),
        done=int(fields["done"]),
        running=len(running),
        prompt_tokens=int(fields["prompt_tokens"]),
        completion_tokens=int(fields["completion_tokens"]),
        rows_per_s=rows_per_s,
        tokens_per_s=tokens_per_s,
        reason=fields.get("reason"),
        errors=errors,
        fingerprint=fields.get("fingerprint"),
        retry=Retry.model_validate_json(fields["retry"]) if "retry" in fields else None,
        version=int(fields.get("version", JOB_VERSION)),
        running_rows=sum(int(lease[2]) for lease in running),
        running_tokens=sum(int(lease[3]) for lease in running),
    )


def _time(fields: dict[str, str], name: str) -> float | None:
    return float(fields[name]) if name in fields else None


def _rate(fields: dict[str, str], now: float) -> tuple[float, float]:
    """Rows and tokens per second since the older of the two marks that finish.lua moves."""
    if "last_at" not in fields or now - float(fields["last_at"]) > RATE_IDLE_S:
        return 0.0, 0.0
    # Right after a job's start the span is next to nothing.
    span = max(now - float(fields["a_at"]), 1.0)
    rows = sum(int(fields[name]) for name in ("completed", "failed", "cancelled", "expired"))
    tokens = int(fields["prompt_tokens"]) + int(fields["completion_tokens"])
    return (rows - int(fields["a_rows"])) / span, (tokens - int(fields["a_tokens"])) / span


def worker_info(fields: dict[str, str]) -> WorkerInfo | None:
    """A worker's hash. None for one that a version with other fields wrote."""
    try:
        return _worker_info(fields)
    except (KeyError, ValueError):
        return None


def _worker_info(fields: dict[str, str]) -> WorkerInfo:
    return WorkerInfo(
        id=fields["id"], model=fields["model"], fingerprint=fields["fingerprint"], host=fields["host"],
        pid=int(fields["pid"]), device=fields["device"], dtype=fields["dtype"], engine=fields["engine"],
        revision=fields["revision"], slots=int(fields["slots"]), version=fields["version"],
        started_at=float(fields["started_at"]), in_hand=int(fields["in_hand"]),
        rows_per_s=float(fields["rows_per_s"]), tokens_per_s=float(fields["tokens_per_s"]),
        shown=shown(fields.get("shown")), reads=tuple(orjson.loads(fields["reads"])),
    )  # fmt: skip


def shown(encoded: str | None) -> Shown:
    """What a worker has shown: of an earlier version nothing, of a later one what this version knows."""
    content = orjson.loads(encoded) if encoded else {}
    names = {item.name for item in dataclasses.fields(Shown)}
    return Shown(**{name: value for name, value in content.items() if name in names})
