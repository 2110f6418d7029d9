"""Jobs under fire: workers, Redis, connections and files are killed, stopped, cut and damaged while they run.

One thread does everything, a little of each at a time: it keeps the workers alive, jobs coming and faults happening,
and looks at what is published. At the end the faults stop, the jobs have to come to theirs, and the store is checked.
"""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from jobs.errors import PromptmillError
from jobs.ledger import keys
from jobs.permits import Permits, make_app
from jobs.spec import now
from jobs.stages import clean_up
from jobs.store import Store
from ops.faults import plugin
from ops.faults.checker import Published, Work, check_store
from ops.faults.orders import MODEL, PROMPTS, TOKENS, Orders
from ops.faults.proxy import Proxy
from ops.faults.strikes import FAULTS
from tests.mill import Mill
from tests.patience import wait_until
from tests.processes import Worker
from tests.redis_server import Server

#: Seconds: short, so that a few minutes hold many recoveries.
LEASE_S, SWEEP_S = 3.0, 0.5
#: Seconds that the jobs have to end once no fault happens any more.
_END_S = 300.0
#: Of the workers that are started, how many come with an end of their own.
_DOOMED = 0.3


@dataclass
class Campaign:
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

    # -- The campaign.

    def run(self, seconds: float, kills: int = 0) -> dict[str, Any]:
        """Faults for so long, and until so many workers were killed; then what came of it."""
        started = time.monotonic()
        next_fault = next_look = started + 5
        told = 0
        while time.monotonic() < started + seconds or self.kills < kills:
            now = time.monotonic()
            self._supervise()
            self.orders.keep_coming()
            self._end_disturbances()
            self._watch_orphans()
            if now >= next_fault:
                self._strike()
                next_fault = now + self.rng.uniform(0.2, 2 * self.pace_s)
            if now >= next_look:
                self._look()
                self.say(
                    f"{now - started:5.0f} s: {len(self.orders.all)} jobs, {self.kills} kills, {len(self.wrong)} wrong"
                )
                told = self._tell(told)
                next_look = now + 10
            time.sleep(0.05)
        return self._end(time.monotonic() - started)

    def _tell(self, told: int) -> int:
        for sentence in self.wrong[told:]:
            self.say(f"    {sentence}")
        return len(self.wrong)

    @property
    def kills(self) -> int:
        """Workers that were ended by SIGKILL, or by a row."""
        return self.done["kill"] + self.done["kill point"] + self.done["curse"]

    def _end(self, seconds: float) -> dict[str, Any]:
        for _, end in self.later:
            end()
        self.later.clear()
        self.say("no more faults: the jobs have to end")

        def all_ended() -> bool:
            self._supervise(doomed=0.0)
            self.orders.go_on()
            return all(map(self.orders.over, self.orders.all))

        try:
            wait_until("the jobs to end", all_ended, _END_S, every_s=0.2)
        except TimeoutError:
            open_ = [order.job for order in self.orders.all if not self.orders.over(order)]
            self.wrong.append(f"P1: {open_} have not ended")
        for worker in self.fleet:
            worker.close()
        self._check_store()
        work = Work.of(self.logs)
        if work.again > sum(work.in_hand.values()):
            self.wrong.append(f"P10: {work.again} rows were generated again, {sum(work.in_hand.values())} were in hand")
        self.proxy.close()
        self.permits.close()
        return self._result(seconds, work)

    def _check_store(self) -> None:
        self._look()
        # What upkeep does once a day, and a week after a stage was last written to.
        clean_up(self.store, now() + timedelta(days=8))
        over = [order for order in self.orders.all if self.orders.over(order)]
        deleted = {order.job: order.stage for order in over if order.deletion == "done"}
        kept = [order.expected for order in over if order.deletion == "no"]
        self.wrong += check_store(self.mill.store_path, kept, deleted)

    def _result(self, seconds: float, work: Work) -> dict[str, Any]:
        rows = sum(order.expected.rows * order.expected.n for order in self.orders.all)
        return {
            "seconds": round(seconds, 1),
            "jobs": len(self.orders.all),
            "rows": rows,
            "kills": self.kills,
            "faults": dict(sorted(self.done.items())),
            "recovery_s": {
                "median": round(median(self.recoveries), 2) if self.recoveries else None,
                "max": round(max(self.recoveries), 2) if self.recoveries else None,
            },
            "generated": {
                "rows": work.rows,
                "again": work.again,
                "in_hand_of_the_dead": sum(work.in_hand.values()),
                "ratio": round(work.rows / max(work.rows - work.again, 1), 4),
            },
            "violations": self.wrong,
        }

    # -- Workers.

    def _supervise(self, doomed: float = _DOOMED) -> None:
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

    def _watch_orphans(self) -> None:
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

    # -- Faults.

    def _strike(self) -> None:
        name = self.rng.choice([name for name in self.faults for _ in range(FAULTS[name][0])])
        strike = FAULTS[name][1]
        if strike is not None:
            with contextlib.suppress(PromptmillError, OSError):
                self.done[name] += bool(strike(self))

    def _end_disturbances(self) -> None:
        for when, end in list(self.later):
            if time.monotonic() >= when:
                end()
                self.later.remove((when, end))

    def _look(self) -> None:
        self.wrong += [line for line in self.published.look() if not any(name in line for name in self.damaged)]

    def victim(self) -> Worker | None:
        alive = [worker for worker in self.fleet if worker.alive]
        return self.rng.choice(alive) if alive else None

    def live_job(self, ending: str | None = None) -> str | None:
        live = self.orders.live(ending)
        return self.rng.choice(live).job if live else None
