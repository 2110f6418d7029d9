"""Jobs, workers and parts for the tests of the ledger, and a way to let time pass."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from jobs.job_file import JOB_VERSIONS, JobFile
from jobs.ledger import Beat, Claim, JobState, LeaseState, Ledger, WorkerInfo, base, connection, keys
from jobs.results import PartCounts
from jobs.spec import JobSpec

ROWS = 10
PART = PartCounts(completed=ROWS, prompt_tokens=50, completion_tokens=200)

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def job_file(
    job: str = "job", batches: int = 4, *, created: float = 0.0, tokens: int | None = None, **spec: Any
) -> JobFile:
    """A job of ``batches`` x 10 rows; ``created`` orders jobs, ``tokens`` is what its share is charged in all."""
    return JobFile(
        id=job, stage=f"stage-{job}", created_at=_EPOCH + timedelta(seconds=created),
        spec=JobSpec(model=spec.pop("model", "tiny"), **spec), digest="0" * 64,
        rows=batches * ROWS, result_rows=batches * ROWS, batches=batches,
        max_tokens_total=batches * ROWS * 100 if tokens is None else tokens,
    )  # fmt: skip


def worker(
    name: str = "w1",
    *,
    model: str = "tiny",
    fingerprint: str = "f1",
    slots: int = 4,
    in_hand: int = 0,
    reads: tuple[int, ...] = JOB_VERSIONS,
) -> WorkerInfo:
    return WorkerInfo(
        id=name, model=model, fingerprint=fingerprint, host="host", pid=1, device="cpu", dtype="float32",
        engine="padded", revision="r1", slots=slots, version="0.1.0", started_at=1.5, in_hand=in_hand,
        rows_per_s=2.5, reads=reads,
    )  # fmt: skip


def as_read_by(versions: tuple[int, ...], client: redis.Redis, store_id: str) -> Ledger:
    """The ledger of a store as a program has it that reads jobs of these versions."""
    with pytest.MonkeyPatch.context() as then:
        then.setattr(keys, "JOB_VERSIONS", versions)
        then.setattr(base, "JOB_VERSIONS", versions)
        then.setattr(connection, "_SOURCES", connection._load())
        return Ledger(client, store_id)


W1, W2 = worker(), worker("w2")


def claimed(ledger: Ledger, by: WorkerInfo = W1) -> Claim:
    """A claim that must be there."""
    claim = ledger.claim(by)
    assert claim is not None
    return claim


def finish(ledger: Ledger, claim: Claim, counts: PartCounts = PART) -> bool:
    """Finishes a claimed batch; whether finalization is due."""
    return ledger.finish(claim.job, claim.batch, claim.token, counts).finalize


def beat(ledger: Ledger, claim: Claim, rows: int = 0) -> LeaseState:
    """What a heartbeat learns about one lease."""
    return ledger.heartbeat([Beat(claim.job, claim.batch, claim.token, rows)])[claim.job, claim.batch]


def state(ledger: Ledger, job: str = "job") -> JobState:
    """A job that must be there."""
    found = ledger.job(job)
    assert found is not None
    return found


def run(ledger: Ledger, by: WorkerInfo = W1) -> list[tuple[str, int]]:
    """Claims and finishes until nothing is left; what was done, in order, finalizations as batch -1."""
    done = []
    while claim := ledger.claim(by):
        done.append((claim.job, claim.batch))
        if claim.kind == "finalize":
            ledger.finalized(claim.job, claim.ending, PartCounts(completed=1), claim.token)
        else:
            finish(ledger, claim)
    return done


def let_leases_expire(client: redis.Redis, ledger: Ledger, *members: str) -> None:
    """Moves the expiry of leases (``job:batch``; all without names) into the past."""
    zset = keys.key(ledger.store_id, "leases")
    for member in members or client.zrange(zset, 0, -1):
        client.zadd(zset, {str(member): 1.0}, xx=True)


def let_time_pass(client: redis.Redis, ledger: Ledger, job: str, seconds: float) -> None:
    """Moves what a job remembers of its recent past back by so much."""
    name = keys.key(ledger.store_id, "job", job)
    for field in ("a_at", "b_at", "last_at"):
        if client.hexists(name, field):
            client.hincrbyfloat(name, field, -seconds)


def job_keys(client: redis.Redis, ledger: Ledger, job: str) -> set[str]:
    """The names of the job's keys, without the store's prefix."""
    prefix = keys.prefix(ledger.store_id)
    return {str(name).removeprefix(prefix) for name in client.keys(f"{prefix}job:{job}*")}
