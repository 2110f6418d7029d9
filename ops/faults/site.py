"""What faults strike: a store, a server behind a proxy, jobs, and workers that are started anew as they end."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jobs.errors import PromptmillError
from jobs.ledger import keys
from jobs.permits import Permits, make_app
from jobs.store import Store
from ops.faults import plugin
from ops.faults.checker import Published
from ops.faults.orders import MODEL, PROMPTS, TOKENS, Orders
from ops.faults.proxy import Proxy
from tests.mill import Mill
from tests.processes import Worker
from tests.redis_server import Server

#: Seconds: short, so that a few minutes hold many recoveries.
LEASE_S, SWEEP_S = 3.0, 0.5
#: Of the workers that are started, how many come with an end of their own.
DOOMED = 0.3


@dataclass
class Site:
    """``faults`` names what may happen (the names of FAULTS); all randomness is of ``rng``."""

    mill: Mill
    server: Server
    model: Path
    rng: random.Random
    faults: Sequence[str]
    workers: int = 2
    #: Seconds between two faults, on average.
    pace_s: float = 1.5
    say: Callable[[str], None] = lambda line: None
    alias: str = MODEL
    lease_s: float = LEASE_S

    done: Counter[str] = field(default_factory=Counter)
    recoveries: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    fleet: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.proxy = Proxy(("127.0.0.1", self.server.port))
        self.logs = self.mill.folder / "logs"
        self.logs.mkdir()
        self.store: Store = self.mill.store
        self.permits = Permits(make_app(self.mill.redis_url, self.store.id), self.store.id)
        self.published = Published(self.mill.store_path)
        from ops.faults.reference import texts_alone  # late: torch takes seconds to import

        texts = texts_alone(self.model, [f"the lamp number {i}" for i in range(PROMPTS)], TOKENS)
        self.orders = Orders(self.mill, self.rng, self.faults, texts, self.wrong, self.done)
        #: Workers that were killed with leases, and since when these have been waiting.
        self.orphans: dict[int, float] = {}
        #: Workers that a fault has killed.
        self.struck: set[int] = set()
        #: What ends a disturbance that lasts, and when.
        self.later: list[tuple[float, Callable[[], None]]] = []
        #: Files that a fault has damaged: they have changed.
        self.damaged: set[str] = set()

    def supervise(self, doomed: float = DOOMED) -> None:
        """Start a worker for each that has ended."""
        for worker in [worker for worker in self.fleet if not worker.alive]:
            self._bury(worker)
        while len(self.fleet) < self.workers:
            env = {"PLUGIN": plugin.__name__, "FAULTS_LOG": str(self.logs), "FAULTS_CURSE": "segv"}
            if "kill point" in self.faults and self.rng.random() < doomed:
                env["FAULTS_KILL"] = f"{self.rng.choice(plugin.WORKER_POINTS)}:{self.rng.randint(1, 4)}"
            self.fleet.append(self.mill.worker(MODEL, self.model, "--grace", "1", **self._settings(), **env))

    def _settings(self) -> dict[str, str]:
        return {
            "PROMPTMILL_LEASE_S": str(self.lease_s),
            "PROMPTMILL_SWEEP_S": str(SWEEP_S),
            "PROMPTMILL_REDIS_URL": self.server.url_through(self.proxy.port),
        }

    def _bury(self, worker: Worker) -> None:
        self.fleet.remove(worker)
        self.mill.processes.remove(worker)
        code = worker.returncode
        if code == -signal.SIGKILL:
            # Those that faults killed are counted by them.
            self.done["kill point"] += worker.pid not in self.struck
            self.orphans.setdefault(worker.pid, time.monotonic())
        elif code == -signal.SIGSEGV:
            self.done["curse"] += 1
            self.orphans[worker.pid] = time.monotonic()
        elif code == -signal.SIGTERM and " ready." not in worker.said():
            pass  # told to end while it was loading
        elif code not in (0, 3, 75):  # told to end; no Redis at its start; its consumer died
            self.wrong.append(f"a worker ended with {code}: {worker.said()[-500:]}")

    def watch_orphans(self) -> None:
        """P9: how long the batches of the dead had to wait."""
        if not self.orphans:
            return
        with contextlib.suppress(PromptmillError, OSError), self.mill.redis() as client:
            owners = {
                lease.split("|", 4)[4]
                for key in client.keys(keys.key(self.store.id, "job_leases", "*"))
                for lease in client.hvals(key)
            }
            for pid, since in list(self.orphans.items()):
                if not any(f"-{pid}-" in owner for owner in owners):
                    self.recoveries.append(time.monotonic() - since)
                    del self.orphans[pid]

    def victim(self) -> Worker | None:
        alive = [worker for worker in self.fleet if worker.alive]
        return self.rng.choice(alive) if alive else None

    def live_job(self, ending: str | None = None) -> str | None:
        live = self.orders.live(ending)
        return self.rng.choice(live).job if live else None
