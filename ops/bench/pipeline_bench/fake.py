"""The pipeline around an engine that costs nothing: everything that is not generation, batch by batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench_errors import BenchError

from jobs.settings import Settings
from jobs.store import Store
from pipeline_bench.mill import stop
from pipeline_bench.records import ALIAS, ROOT
from producer import Client
from producer.connection import Connection
from producer.server import EmbeddedServer

SCRIPT = ROOT / "ops" / "bench" / "pipeline"
BATCH_ROWS = 256

#: Seconds to wait for workers to register, and between two looks at the jobs.
_LOAD_S, _LOOK_S = 120.0, 0.2


@dataclass(frozen=True)
class FakeSetup:
    """One run: so many batches, of so many live jobs, and workers that share them."""

    workers: int
    jobs: int
    batches: int
    concurrency: int


def measure_fake(setup: FakeSetup, folder: Path) -> dict[str, Any]:
    """Batches and rows per second from the first permit until the last dataset is whole. Raises BenchError."""
    with paused_jobs(setup, folder) as (url, store, connection, jobs), ExitStack() as stack:
        command = ["--fake-worker", json.dumps(asdict(setup))]
        workers = [
            stack.enter_context(worker_process(SCRIPT, command, url, store, folder)) for _ in range(setup.workers)
        ]
        wait_for(workers, connection)
        before, started = [cpu_seconds(worker.pid) for worker in workers], connection.ledger.now()
        for job in jobs:
            connection.ledger.resume(job)
        connection.send_first_permits(ALIAS)
        seconds = end_of(jobs, workers, connection) - started
        cpu = sum(cpu_seconds(worker.pid) for worker in workers) - sum(before)
    rows = setup.batches * BATCH_ROWS
    return asdict(setup) | {
        "rows": rows,
        "seconds": round(seconds, 3),
        "batches_per_s": round(setup.batches / seconds, 1),
        "rows_per_s": round(rows / seconds),
        "worker_cpu_ms_per_batch": round(1000 * cpu / setup.batches, 1),
    }


@contextmanager
def paused_jobs(setup: FakeSetup, folder: Path) -> Iterator[tuple[str, Path, Connection, list[str]]]:
    """A server in ``folder``, by its URL, a store, a connection to both, and the jobs, which are paused."""
    store = folder / "store"
    folder.mkdir()
    Store.open(str(store), create=True)
    with EmbeddedServer(store, folder / "server") as server, ExitStack() as stack:
        connection = Connection(Settings.load(store=str(store), redis_url=server.url))
        stack.callback(connection.close)
        yield server.url, store, connection, _submit_paused(setup, server.url, store, connection)


def _submit_paused(setup: FakeSetup, url: str, store: Path, connection: Connection) -> list[str]:
    """The jobs, staged and paused: nobody begins before everybody is there."""
    rows = setup.batches // setup.jobs * BATCH_ROWS
    with Client(redis_url=url, store=store) as client:
        names = []
        for number in range(setup.jobs):
            source = ({"prompt": f"Write a warm description of product {i} of range {number}."} for i in range(rows))
            names.append(client.submit(source, model=ALIAS, batch_size=BATCH_ROWS, max_tokens=1).id)
            connection.ledger.pause(names[-1])
    return names


@contextmanager
def worker_process(
    script: Path, arguments: list[str], url: str, store: Path, folder: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``script``, which ends with this block."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
    variables |= {"PROMPTMILL_STORE": str(store), "PROMPTMILL_REDIS_URL": url}
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), *arguments], env=variables, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            stop(process)


def _check(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is not None:
            raise BenchError(f"a worker ended with status {worker.returncode}")


def wait_for(workers: list[subprocess.Popen[bytes]], connection: Connection) -> None:
    """Until all of them are registered. Raises BenchError."""
    deadline = time.monotonic() + _LOAD_S
    while len(connection.ledger.workers()) < len(workers):
        _check(workers)
        if time.monotonic() > deadline:
            raise BenchError(f"not all workers are there after {_LOAD_S:g} s")
        time.sleep(_LOOK_S)


def end_of(jobs: list[str], workers: list[subprocess.Popen[bytes]], connection: Connection) -> float:
    """When the last of the jobs ended. Raises BenchError."""
    while True:
        states = [state for job in jobs if (state := connection.ledger.job(job)) is not None]
        ends = [state.ended_at for state in states if state.ended_at is not None]
        if len(ends) == len(jobs):
            break
        _check(workers)
        time.sleep(_LOOK_S)
    if any(state.completed != state.total for state in states):
        raise BenchError("a job did not complete all of its rows")
    return max(ends)


def cpu_seconds(pid: int) -> float:
    """Processor time of another process; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve_fake(setup: FakeSetup) -> int:
    """This process as a worker, as ``promptmill-worker start`` is one, but for its engine."""
    from jobs.ledger import Ledger, WorkerInfo
    from jobs.parquet import keep_pandas_out
    from jobs.permits import Permits, make_app
    from worker.app import WorkerOptions, consume
    from worker.context import WorkerContext
    from worker.engine.fake import FakeEngine
    from worker.engine.request import EngineLimits

    keep_pandas_out()
    settings = Settings.load()
    store = Store.open(settings.store)
    ledger = Ledger.connect(settings.redis, store.id, lease_s=settings.lease_s, sweep_s=settings.sweep_s)
    engine = FakeEngine(EngineLimits(max_rows=2 * BATCH_ROWS))
    registration = WorkerInfo(
        id=f"fake-{os.getpid()}", model=ALIAS, fingerprint="fake", host="here", pid=os.getpid(), device="none",
        dtype="none", engine="fake", revision="fake", slots=setup.concurrency, version="0", started_at=ledger.now(),
    )  # fmt: skip
    permits = Permits(make_app(settings.redis, store.id), store.id)
    tokenizer: Any = engine.tokenizer
    context = WorkerContext(settings, store, ledger, permits, engine, tokenizer, registration, os.getppid())
    engine.start()
    try:
        return 0 if consume(context, WorkerOptions(ALIAS, "fake", concurrency=setup.concurrency)) else 1
    finally:
        engine.close()
        ledger.unregister(registration.id)
        ledger.close()
