"""Client processes that claim and finish as workers do, and what the server and they spend on it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

from bench_errors import BenchError

from jobs.ledger import Beat, Claim, Ledger
from jobs.permits import queue_key
from ledger_bench.server import Server
from ledger_bench.work import MODEL, PART, STORE_ID, accept_jobs, empty_ledger, worker

SCRIPT = Path(__file__).resolve().parents[1] / "ledger"

#: Seconds between two heartbeats and between two sweeps, as in a worker with the default settings.
BEAT_S = SWEEP_S = 5.0


@dataclass(frozen=True)
class Load:
    """One run: ``batches`` are claimed and finished in all."""

    jobs: int
    clients: int
    threads: int
    batches: int


@dataclass(frozen=True)
class Told:
    """What a client process is told."""

    url: str
    number: int
    threads: int
    batches: int


def run(server: Server, load: Load) -> dict[str, Any]:
    """Rates, latencies and processor times of one run. Raises BenchError."""
    ledger = empty_ledger(server)
    accept_jobs(ledger, load.jobs, load.batches)
    share = load.batches // load.clients
    clients = [_start(Told(server.url, number, load.threads, share)) for number in range(load.clients)]
    try:
        for client in clients:
            _expect(client, "ready")
        cpu, scripts, started = server.cpu(), server.script_seconds(), time.perf_counter()
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("go\n")
            client.stdin.flush()
        found = [json.loads(_expect(client, "{")) for client in clients]
        seconds = time.perf_counter() - started
        cpu, scripts = server.cpu() - cpu, server.script_seconds() - scripts
    finally:
        for client in clients:
            client.kill()
            client.wait()
    done = sum(state.done for state in ledger.jobs())
    ledger.close()
    if done != share * load.clients:
        raise BenchError(f"{done} batches are done where {share * load.clients} were claimed and finished")
    operations = 2 * done
    return asdict(load) | {
        "seconds": round(seconds, 6),
        "claims_per_s": round(done / seconds),
        "finishes_per_s": round(done / seconds),
        "together_per_s": round(operations / seconds),
        **_latencies("claim", [t for one in found for t in one["claim"]]),
        **_latencies("finish", [t for one in found for t in one["finish"]]),
        "server_us": round(1e6 * cpu / operations, 1),
        "script_us": round(1e6 * scripts / operations, 1),
        "client_us": round(1e6 * sum(one["cpu"] for one in found) / operations, 1),
    }


def _latencies(name: str, seconds: list[float]) -> dict[str, float]:
    cuts = quantiles(seconds, n=20)
    return {f"{name}_p50_ms": round(1000 * cuts[9], 3), f"{name}_p95_ms": round(1000 * cuts[18], 3)}


def _start(told: Told) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), "--client", json.dumps(asdict(told))]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _expect(client: subprocess.Popen[str], beginning: str) -> str:
    """The client's next line. Raises BenchError where it is not what is waited for."""
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line.startswith(beginning):
        raise BenchError(f"a client process ended with status {client.wait()}")
    return line


def act(told: Told) -> None:
    """This process as a client: its threads claim and finish, two more keep up leases and sweep."""
    ledger = Ledger.connect(told.url, STORE_ID)
    client = _Client(ledger, told)
    ledger.ping()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(client.run()), flush=True)
    ledger.close()


class _Client:
    """What a worker process does with the ledger, without what it does in between."""

    def __init__(self, ledger: Ledger, told: Told) -> None:
        self._ledger = ledger
        self._told = told
        self._worker = worker(told.number, told.threads)
        self._queue = queue_key(STORE_ID, MODEL)
        self._held: dict[str, Claim] = {}
        self._over = threading.Event()
        self._claims: list[float] = []
        self._finishes: list[float] = []

    def run(self) -> dict[str, Any]:
        upkeep = [threading.Thread(target=self._beat), threading.Thread(target=self._sweep)]
        cpu = time.process_time()
        for thread in upkeep:
            thread.start()
        with ThreadPoolExecutor(self._told.threads) as pool:
            list(pool.map(self._work, [self._told.batches // self._told.threads] * self._told.threads))
        self._work(self._told.batches % self._told.threads)
        cpu = time.process_time() - cpu
        self._over.set()
        for thread in upkeep:
            thread.join()
        return {"claim": self._claims, "finish": self._finishes, "cpu": cpu}

    def _work(self, batches: int) -> None:
        for _ in range(batches):
            started = time.perf_counter()
            claim = self._ledger.claim(self._worker)
            claimed = time.perf_counter()
            assert claim is not None
            self._held[claim.token] = claim
            if claim.more:
                # A worker sees to it that a permit is left for the next slot.
                self._ledger.queue_length(self._queue)
            finishing = time.perf_counter()
            self._ledger.finish(claim.job, claim.batch, claim.token, PART)
            finished = time.perf_counter()
            del self._held[claim.token]
            self._claims.append(claimed - started)
            self._finishes.append(finished - finishing)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            self._ledger.register(self._worker)
            beats = [Beat(claim.job, claim.batch, claim.token, 100, 5_000) for claim in [*self._held.values()]]
            self._ledger.heartbeat(beats, self._worker.id)
            self._ledger.has_work(self._worker)

    def _sweep(self) -> None:
        while not self._over.is_set():
            self._ledger.sweep(self._worker.id)
            self._over.wait(SWEEP_S)
