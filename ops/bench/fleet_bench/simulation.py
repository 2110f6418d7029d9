"""A fleet of simulated workers against one real server: what it bears, and what it spends on each worker and batch."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from bench_errors import BenchError
from pipeline_bench.records import ROOT

from fleet_bench.server import FleetServer
from fleet_bench.simulated import Told, as_argument
from jobs import layout
from jobs.job_file import JobFile
from jobs.ledger import keys
from jobs.settings import Settings
from jobs.spec import JobSpec, now
from jobs.store import Store
from producer.connection import Connection

SCRIPT = ROOT / "ops" / "bench" / "fleet"
BATCH_ROWS = 256
#: Of each job: none ends while it is measured.
BATCHES = 100_000

#: Seconds for all workers to be there, for all slots to be in use, and for a fleet to come back.
_PATIENCE_S = 180.0
_LOOK_S = 0.1
#: Times that each question is asked.
READS = 5


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    workers: int
    processes: int
    slots: int
    models: int
    jobs: int
    #: Seconds of each window that is measured.
    seconds: float
    #: Seconds that a batch takes: a window for each.
    batch_s: list[float]
    start_s: float = 5.0


class Simulation:
    """The fleet, its server and its store. Raises BenchError where either does not do what it should."""

    def __init__(self, plan: Plan, server: FleetServer, store: Path, clients: list[subprocess.Popen[str]]) -> None:
        self.plan = plan
        self.server = server
        self.connection = Connection(Settings.load(store=str(store), redis_url=server.url))
        self._clients = clients
        self._batch_s = 0.0

    # -- The fleet.

    def wait_for_workers(self) -> float:
        """Seconds until all of them are registered."""
        return self._until("the workers to register", lambda: self._listed() >= self.plan.workers)

    def _listed(self) -> int:
        names = self.server.client.smembers(self._key("workers"))
        with self.server.client.pipeline(transaction=False) as pipe:
            for name in names:  # type: ignore[union-attr]
                pipe.exists(self._key("worker", str(name)))
            return sum(pipe.execute())

    def begin(self) -> dict[str, float]:
        """Accept the jobs; seconds until their first permits were sent, and until every slot has a batch."""
        ledger = self.connection.ledger
        models = [f"model-{number}" for number in range(self.plan.models)]
        for number in range(self.plan.jobs):
            for model in models:
                job = _job_file(f"{model}-job-{number}", model)
                self.connection.store.put_if_absent(layout.job_file(job.id), job.to_bytes())
                ledger.accept(job)
        started = time.monotonic()
        for model in models:
            self.connection.send_first_permits(model)
        sent_s = time.monotonic() - started
        slots = self.plan.workers * self.plan.slots
        busy_s = sent_s + self._until("all slots to have a batch", lambda: self.leases() >= slots)
        return {"permits_s": round(sent_s, 2), "busy_s": round(busy_s, 2)}

    def leases(self) -> int:
        return int(self.server.client.zcard(self._key("leases")))  # type: ignore[arg-type]

    def pace(self, batch_s: float) -> None:
        self._ask(str(batch_s))

    def unthrottle(self) -> None:
        """From now on a few workers of each process claim as fast as they can."""
        self._ask("unthrottled")

    def window(self, name: str, **known: Any) -> dict[str, Any]:
        """What fleet and server do in so many seconds."""
        first, asked = self._ask(""), time.monotonic()
        cpu, started = self.server.begin(), time.monotonic()
        time.sleep(self.plan.seconds)
        seconds = time.monotonic() - started
        server = self.server.end(cpu, seconds)
        # On a busy machine the fleet takes its time to answer, and goes on meanwhile: what it says is of all of it.
        found = self._ask("")
        fleet_s = time.monotonic() - asked
        claims = [call_s for one in found for call_s in one["claims"]]
        finishes = [call_s for one in found for call_s in one["finishes"]]
        own = sum(b["cpu"] - a["cpu"] for a, b in zip(first, found, strict=True))
        each = server["redis_cpu"] * fleet_s * 1e6 / len(claims) if claims else 0.0
        return {
            "window": name,
            **known,
            "claims_per_s": round(len(claims) / fleet_s, 1),
            **latencies("claim", claims),
            **latencies("finish", finishes),
            **server,
            "redis_us_per_claim": round(each, 1),
            "fleet_cpu": round(own / fleet_s, 3),
            "errors": dict(sum((Counter(one["errors"]) for one in found), Counter[str]())),
        }

    def _ask(self, line: str) -> list[dict[str, Any]]:
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.write(line + "\n")
            client.stdin.flush()
        return [_answer(client) for client in self._clients]

    def _key(self, name: str, *parts: str) -> str:
        return keys.key(self.connection.store.id, name, *parts)

    @staticmethod
    def _until(what: str, look: Any) -> float:
        started = time.monotonic()
        while not look():
            if time.monotonic() - started > _PATIENCE_S:
                raise BenchError(f"after {_PATIENCE_S:g} s still waiting for {what}")
            time.sleep(_LOOK_S)
        return round(time.monotonic() - started, 2)

    # -- What people and dashboards ask.

    def reads(self) -> list[dict[str, Any]]:
        """How long each question takes, and what it costs the server while the fleet works."""
        ledger = self.connection.ledger
        asked = {
            "workers": ledger.workers,
            "jobs": ledger.jobs,
            "job": lambda: ledger.job("model-0-job-0"),
            "claimable": lambda: ledger.claimable("model-0"),
            "sweep, stalled": self._stalled_sweep,
        }
        found = []
        for name, question in asked.items():
            question()
            times, own = [], time.process_time()
            for _ in range(READS):
                started = time.perf_counter()
                question()
                times.append(time.perf_counter() - started)
            own = (time.process_time() - own) / READS
            found.append({"read": name, "ms": round(1e3 * median(times), 1), "own_cpu_ms": round(1e3 * own, 1)})
        return found

    def _stalled_sweep(self) -> None:
        """By the one whose turn it is, where no claim was made of late."""
        for number in range(self.plan.models):
            self.server.client.hdel(self._key("vtime", f"model-{number}"), "claimed")
        self.server.client.set(self._key("sweeping"), "bench", px=5_000)
        self.connection.ledger.sweep("bench")

    # -- The end of a server.

    def restart(self, away_s: float) -> dict[str, Any]:
        """Kill the server, start it again, and see the fleet come back: seconds are from its first answer."""
        before = self.leases()
        # Else a kill loses what it had answered while the disk was slow to sync, and those batches are claimed again.
        self.server.hold()
        self._until("the server to write what it has answered", lambda: self.server.has_written)
        self.server.kill()
        time.sleep(away_s)
        started = time.monotonic()
        self.server.start()
        loaded, answered, cpu = time.monotonic() - started, time.time(), self.server.cpu()
        self._ask("")
        claimed, back_s = 0, 0.0
        while not back_s:
            found = self._ask("")
            claimed += sum(len(one["claims"]) for one in found)
            listed = sum(at > answered for one in found for at in one["registered"])
            if listed >= self.plan.workers:
                back_s = time.time() - answered
            elif time.time() - answered > _PATIENCE_S:
                raise BenchError(f"{listed} workers came back within {_PATIENCE_S:g} s")
            time.sleep(_LOOK_S)
        return {
            "leases_before": before,
            "load_s": round(loaded, 2),
            "all_back_s": round(back_s, 2),
            "claims_by_then": claimed,
            "leases_by_then": self.leases(),
            "redis_cpu": round((self.server.cpu() - cpu) / back_s, 3),
        }

    def end(self) -> dict[str, Any]:
        """Stop the fleet: how many batches were claimed, how many of them again, and how many of those although nobody
        had given them up, which must be none."""
        batches: Counter[str] = Counter()
        given_up: Counter[str] = Counter()
        for client in self._clients:
            assert client.stdin is not None
            client.stdin.close()
        for client in self._clients:
            answer = _answer(client)
            batches.update(answer["batches"])
            given_up.update(answer["given_up"])
        done = sum(state.done for state in self.connection.ledger.jobs())
        again = sum(count - 1 for count in batches.values())
        twice = sum(max(count - 1 - given_up[name], 0) for name, count in batches.items())
        given = sum(given_up.values())
        return {
            "claimed": sum(batches.values()), "done": done, "given_up": given, "claimed_again": again,
            "claimed_twice": twice,
        }  # fmt: skip

    def close(self) -> None:
        self.connection.close()


def latencies(name: str, seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {f"{name}_p50_ms": 0.0, f"{name}_p99_ms": 0.0}
    cuts = quantiles(seconds, n=100)
    return {f"{name}_p50_ms": round(1000 * cuts[49], 2), f"{name}_p99_ms": round(1000 * cuts[98], 2)}


def _job_file(job: str, model: str) -> JobFile:
    rows = BATCHES * BATCH_ROWS
    return JobFile(
        id=job, stage=job.encode().hex()[:32].ljust(32, "0"), created_at=now(), spec=JobSpec(model=model),
        digest="0" * 64, rows=rows, result_rows=rows, batches=BATCHES, max_tokens_total=rows * 256,
    )  # fmt: skip


@contextmanager
def simulating(plan: Plan, server: FleetServer, store: Path) -> Iterator[Simulation]:
    """The fleet, started; its processes end with this block. Raises BenchError."""
    Store.open(str(store), create=True)
    with ExitStack() as stack:
        clients = []
        for process in range(plan.processes):
            share = plan.workers // plan.processes + (process < plan.workers % plan.processes)
            told = Told(server.url, str(store), process, share, plan.slots, plan.models, plan.batch_s[0], plan.start_s)
            command = [sys.executable, str(SCRIPT), "--simulated", as_argument(told)]
            log = stack.enter_context((store.parent / "fleet.log").open("ab"))
            client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
            stack.callback(client.wait)
            stack.callback(client.kill)
            clients.append(client)
        for client in clients:
            _answer(client)
        simulation = Simulation(plan, server, store, clients)
        stack.callback(simulation.close)
        yield simulation


def _answer(client: subprocess.Popen[str]) -> dict[str, Any]:
    assert client.stdout is not None
    line = client.stdout.readline()
    if not line.startswith("{"):
        raise BenchError(f"a process of simulated workers ended with status {client.wait()}")
    found: dict[str, Any] = json.loads(line)
    return found
