"""Real worker processes that share a job: what each more of them adds, and what they cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow.dataset as ds
import redis
from bench_errors import BenchError
from pipeline_bench.fake import BATCH_ROWS, FakeSetup, cpu_seconds, end_of, paused_jobs, wait_for, worker_process
from pipeline_bench.records import ALIAS, ROOT

from jobs import layout

SCRIPT = ROOT / "ops" / "bench" / "fleet"

#: Seconds that workers stand idle before the clock starts: their start is not what is measured.
_SETTLE_S = 2.0


@dataclass(frozen=True)
class Fleet:
    """One run: workers that share one job."""

    workers: int
    batches: int
    engine_rows_per_s: float
    concurrency: int


def measure(fleet: Fleet, folder: Path) -> dict[str, Any]:
    """One job from its first permit until its dataset is whole. Raises BenchError."""
    setup = FakeSetup(fleet.workers, 1, fleet.batches, fleet.concurrency)
    with paused_jobs(setup, folder) as (url, store, connection, (job,)), ExitStack() as stack:
        client = stack.enter_context(_client(url))
        before_workers = _connections(client)
        command = ["--worker", json.dumps({"rows_per_s": fleet.engine_rows_per_s, "concurrency": fleet.concurrency})]
        workers = [
            stack.enter_context(worker_process(SCRIPT, command, url, store, folder)) for _ in range(fleet.workers)
        ]
        wait_for(workers, connection)
        time.sleep(_SETTLE_S)
        cpu, server_cpu = [cpu_seconds(worker.pid) for worker in workers], _server_cpu(client)
        started = connection.ledger.now()
        connection.ledger.resume(job)
        connection.send_first_permits(ALIAS)
        ended = end_of([job], workers, connection)
        spent = sum(cpu_seconds(worker.pid) for worker in workers) - sum(cpu)
        server_spent = _server_cpu(client) - server_cpu
        connections = (_connections(client) - before_workers) / fleet.workers
        found = _phases(store, job, fleet, started, ended)
    rows = fleet.batches * BATCH_ROWS
    return asdict(fleet) | {
        "rows": rows,
        **found,
        "worker_cpu_s_per_1000_rows": round(1000 * spent / rows, 4),
        "redis_cpu_s_per_1000_rows": round(1000 * server_spent / rows, 5),
        "connections_per_worker": round(connections, 1),
    }


def _phases(store: Path, job: str, fleet: Fleet, started: float, ended: float) -> dict[str, Any]:
    """Rates and where the time went, from the dataset. Raises BenchError where rows are missing, or there twice."""
    folder = store / layout.results_prefix(job)
    columns = ["row_index", "worker", "status", "finished_at"]
    rows = ds.dataset(sorted(folder.glob("*.parquet"))).to_table(columns=columns).to_pydict()
    expected = [*range(fleet.batches * BATCH_ROWS)]
    if sorted(rows["row_index"]) != expected or set(rows["status"]) != {"ok"}:
        raise BenchError(f"{len(rows['row_index'])} rows where {len(expected)} were asked for, or not all are ok")
    by_worker: dict[str, list[float]] = {}
    for worker, at in zip(rows["worker"], rows["finished_at"], strict=True):
        by_worker.setdefault(worker, []).append(_seconds(at))
    if len(by_worker) != fleet.workers:
        raise BenchError(f"{len(by_worker)} of {fleet.workers} workers had rows")
    # While each of them has rows: from the last first row to the first last row.
    begin, end = max(map(min, by_worker.values())), min(map(max, by_worker.values()))
    inside = sum(begin < at <= end for times in by_worker.values() for at in times)
    last = max(map(max, by_worker.values()))
    return {
        "seconds": round(ended - started, 3),
        "rows_per_s": round(len(expected) / (ended - started), 1),
        "steady_rows_per_s": round(inside / (end - begin), 1) if end > begin else 0.0,
        "start_s": round(begin - started, 3),
        "tail_s": round(last - end, 3),
        "finalize_s": round(ended - last, 3),
    }


def _seconds(at: datetime) -> float:
    return at.timestamp()


def scale(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The median run of each number of workers, and how its rate compares with that many times the first's."""
    found: list[dict[str, Any]] = []
    for workers in sorted({run["workers"] for run in runs}):
        same = [run for run in runs if run["workers"] == workers]
        found.append({"workers": workers, "rounds": len(same)} | {
            name: round(median(run[name] for run in same), 5)
            for name, value in same[0].items() if isinstance(value, int | float) and name != "workers"
        })  # fmt: skip
    first = found[0]
    for one in found:
        share = one["workers"] / first["workers"]
        one["ratio"] = round(one["rows_per_s"] / first["rows_per_s"] / share, 3)
        one["steady_ratio"] = round(one["steady_rows_per_s"] / first["steady_rows_per_s"] / share, 3)
        one["of_engines"] = round(one["steady_rows_per_s"] / one["engine_rows_per_s"] / one["workers"], 3)
    return found


@contextmanager
def _client(url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        client.close()


def _server_cpu(client: redis.Redis) -> float:
    info: dict[str, Any] = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def _connections(client: redis.Redis) -> int:
    info: dict[str, Any] = client.info("clients")
    return int(info["connected_clients"])
