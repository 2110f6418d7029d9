"""Jobs and workers as the ledger sees them; no row of them is staged anywhere."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta

from jobs.job_file import JobFile
from jobs.ledger import Ledger, WorkerInfo
from jobs.results import PartCounts
from jobs.spec import JobSpec
from ledger_bench.server import Server

MODEL = "bench"
STORE_ID = "0f3a5c1b9d7e4826"
BATCH_ROWS = 256
#: What a batch of 256 rows comes to.
PART = PartCounts(
    completed=255, failed=1, prompt_tokens=31_000, completion_tokens=16_000, errors={"context_overflow": 1}
)

_WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def job_file(number: int, batches: int) -> JobFile:
    rows = batches * BATCH_ROWS
    return JobFile(
        id=f"job-{number:08x}4b2f9d", stage=f"{number:032x}", created_at=_WHEN + timedelta(seconds=number),
        spec=JobSpec(model=MODEL), digest="0" * 64, rows=rows, result_rows=rows, batches=batches,
        max_tokens_total=rows * 256,
    )  # fmt: skip


def worker(number: int = 0, slots: int = 4) -> WorkerInfo:
    host = socket.gethostname()
    return WorkerInfo(
        id=f"{host}-{os.getpid()}-{number:06x}", model=MODEL, fingerprint="5d41402abc4b2a76", host=host,
        pid=os.getpid(), device="cpu", dtype="float32", engine="inflight", revision="r1", slots=slots, version="0",
        started_at=_WHEN.timestamp(),
    )  # fmt: skip


def empty_ledger(server: Server) -> Ledger:
    """A ledger on the server, with nothing else on it."""
    server.client.flushall()
    ledger = Ledger.connect(server.url, STORE_ID)
    ledger.recovered()
    return ledger


def accept_jobs(ledger: Ledger, jobs: int, batches: int) -> None:
    """``jobs`` jobs that have ``batches`` batches between them, and some more, so that none ends."""
    for number in range(jobs):
        ledger.accept(job_file(number, batches // jobs + 50))
