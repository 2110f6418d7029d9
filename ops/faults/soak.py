"""Two workers under load for a long time: what they hold must not grow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from ops.faults.checker import Expected, check_store
from tests.mill import Mill
from tests.redis_server import Server

MODEL, ROWS, TOKENS = "tiny", 200, 8
_SAMPLE_S = 2.0
#: Jobs that are there at once.
_LIVE = 2
#: A quarter of the samples has one at least, however slow the machine is.
_LEAST_SAMPLES = 4


def soak(mill: Mill, server: Server, model: Path, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Jobs of ROWS rows, two at a time; medians of the second quarter of the time and of the last, of each measure."""
    workers = mill.workers(MODEL, model, 2)
    watched = [psutil.Process(worker.pid) for worker in workers]
    samples: list[dict[str, float]] = []
    jobs: list[str] = []
    started = next_sample = time.monotonic()
    store_id = mill.store.id
    with mill.connection() as connection, mill.redis() as client:
        over = False
        while not over or any(not job.status.ended for job in connection.ledger.jobs()):
            over = time.monotonic() >= started + seconds and len(samples) >= _LEAST_SAMPLES
            if not over and sum(not job.status.ended for job in connection.ledger.jobs()) < _LIVE:
                jobs.append(_submit(mill, len(jobs)))
            if not over and time.monotonic() >= next_sample:
                next_sample += _SAMPLE_S
                # The summaries of ended jobs stay for 7 days: one key each.
                live = [key for key in client.scan_iter(f"promptmill:{store_id}:*") if client.ttl(key) < 0]
                samples.append({
                    "rss_mb": sum(process.memory_info().rss for process in watched) / 2**20,
                    "descriptors": sum(process.num_fds() for process in watched),
                    "threads": sum(process.num_threads() for process in watched),
                    "redis_keys_without_ttl": len(live),
                })  # fmt: skip
                if len(samples) % 15 == 0:
                    say(f"{time.monotonic() - started:5.0f} s: {len(jobs)} jobs, {json.dumps(samples[-1])}")
            time.sleep(0.1)
    quarter = len(samples) // 4
    measures = {
        name: {
            "second_quarter": round(median(sample[name] for sample in samples[quarter : 2 * quarter]), 1),
            "last_quarter": round(median(sample[name] for sample in samples[-quarter:]), 1),
        }
        for name in samples[0]
    }
    wrong = [f"a worker ended with {worker.returncode}" for worker in workers if not worker.alive]
    wrong += check_store(mill.store_path, [Expected(job, ROWS) for job in jobs])
    return {"seconds": round(seconds, 1), "jobs": len(jobs), "rows": ROWS * len(jobs), **measures, "violations": wrong}


def _submit(mill: Mill, number: int) -> str:
    source = mill.prompts(f"soak{number}", ROWS)
    flags = ("--model", MODEL, "--max-tokens", str(TOKENS), "--batch-size", "20")
    return mill.call("submit", source, *flags).ok().out.strip()
