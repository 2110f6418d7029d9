"""One process with many simulated workers. Each has a worker's own context, upkeep, connections and permits.

What is simulated: a batch is waited for instead of generated, nothing is read from or put into the store for it, and
permits are taken off the queue by the commands that Celery was seen to send instead of by Celery.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import redis

from jobs.ledger import Claim, Ledger, WorkerInfo
from jobs.permits import Permits, make_app
from jobs.reconcile import Reconciler
from jobs.results import PartCounts
from jobs.settings import Settings
from jobs.spec import Status
from jobs.store import Store
from worker import batch, claims
from worker.context import WorkerContext
from worker.engine.request import EngineLimits, EngineStats
from worker.heartbeat import Upkeep
from worker.leases import HeldLease

#: What a batch of 256 rows comes to.
PART = PartCounts(completed=256, prompt_tokens=31_000, completion_tokens=16_000)
#: Bytes: of thousands of threads, each needs little.
_STACK = 512 * 1024
#: Seconds; see its use.
_SWITCH_S = 0.2
#: Workers of each process that claim as fast as they can, when told so.
UNTHROTTLED = 2
#: Batches take their time give or take this share of it: a fleet does not march in step.
_SPREAD = 0.2
#: Seconds that a worker waits at most before it begins: workers do not all start in one instant.
_START_S = 5.0
#: Seconds of Celery's pauses between two tries to connect: each is longer by so much, up to the last.
_RETRY_S, _RETRY_MAX_S = 2.0, 30.0


@dataclass(frozen=True)
class Told:
    """What a process of simulated workers is told."""

    url: str
    store: str
    process: int
    workers: int
    slots: int
    models: int
    batch_s: float
    start_s: float = _START_S


class Pace:
    """How long batches take; a change reaches those that are waited for."""

    def __init__(self, batch_s: float) -> None:
        #: Workers whose batches take no time.
        self.unthrottled: frozenset[str] = frozenset()
        self._batch_s = batch_s
        self._changed = threading.Event()
        self.over = False

    def change(self, batch_s: float) -> None:
        changed, self._changed, self._batch_s = self._changed, threading.Event(), batch_s
        changed.set()

    def unthrottle(self, workers: Iterable[str]) -> None:
        self.unthrottled = frozenset(workers)
        self.change(self._batch_s)

    def end(self) -> None:
        self.over = True
        self.change(0.0)

    def wait(self, worker: str) -> None:
        changed = self._changed
        left = self._batch_s * random.uniform(1 - _SPREAD, 1 + _SPREAD)
        while not self.over and worker not in self.unthrottled and changed.wait(left):
            # From now on in the middle of a batch of the new length.
            changed, left = self._changed, self._batch_s * random.random()


class Record:
    """What the workers of this process did since it was last asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.claims: list[float] = []
        self.finishes: list[float] = []
        self.errors: Counter[str] = Counter()
        #: When each worker was registered last.
        self.registered: dict[str, float] = {}
        #: Claims of each batch, of the whole run.
        self.batches: Counter[str] = Counter()
        #: Those that were given up: their finish could not be told.
        self.given_up: Counter[str] = Counter()

    def claimed(self, seconds: float, claim: Claim | None) -> None:
        with self._lock:
            if claim is not None:
                self.claims.append(seconds)
                self.batches[f"{claim.job}:{claim.batch}"] += 1

    def finished(self, seconds: float) -> None:
        with self._lock:
            self.finishes.append(seconds)

    def failed(self, error: BaseException) -> None:
        with self._lock:
            self.errors[type(error).__name__] += 1

    def take(self) -> dict[str, Any]:
        with self._lock:
            found = {"claims": self.claims, "finishes": self.finishes, "errors": dict(self.errors)}
            self.claims, self.finishes, self.errors = [], [], Counter()
        return found | {"registered": [*self.registered.values()], "cpu": time.process_time()}


class TimedLedger(Ledger):
    """A ledger that notes how long its callers waited for a claim and a finish."""

    record: Record

    def claim(self, worker: WorkerInfo) -> Claim | None:
        started = time.perf_counter()
        try:
            claim = super().claim(worker)
        except Exception as error:
            self.record.failed(error)
            raise
        self.record.claimed(time.perf_counter() - started, claim)
        return claim

    def finish(self, job: str, batch: int, token: str | None, counts: PartCounts) -> Any:
        started = time.perf_counter()
        found = super().finish(job, batch, token, counts)
        self.record.finished(time.perf_counter() - started)
        return found

    def register(self, worker: WorkerInfo, *, worked: bool = False) -> None:
        super().register(worker, worked=worked)
        self.record.registered[worker.id] = time.time()


class NoEngine:
    """An engine that always progresses and always has room."""

    limits = EngineLimits()
    failure: BaseException | None = None
    rows_in_hand = 0

    def stats(self) -> EngineStats:
        ticks = int(time.monotonic() * 100)
        return EngineStats(rows=ticks, completion_tokens=64 * ticks, steps=ticks, running_rows=64)


class Consumer(threading.Thread):
    """Takes permits as Celery was seen to do it: BRPOP for a second while a slot is free. None is acknowledged."""

    def __init__(self, url: str, context: WorkerContext, slots: int, pace: Pace, delay_s: float) -> None:
        super().__init__(daemon=True)
        self._popping = redis.Redis.from_url(url)
        self._worker = context
        self._free = threading.Semaphore(slots)
        self._pool = ThreadPoolExecutor(slots)
        self._pace = pace
        self._delay_s = delay_s
        key = context.permits.queue_key(context.model)
        self._queues = [key, *(f"{key}\x06\x16{priority}" for priority in (3, 6, 9))]

    def run(self) -> None:
        time.sleep(self._delay_s)
        tries = 0
        while not self._pace.over:
            if not self._free.acquire(timeout=1.0):
                continue
            try:
                message = self._popping.brpop(self._queues, timeout=1)
                if message is None:
                    self._free.release()
                else:
                    self._pool.submit(self._run)
                tries = 0
            except redis.RedisError:
                self._free.release()
                tries += 1
                time.sleep(min(_RETRY_S * tries, _RETRY_MAX_S))

    def _run(self) -> None:
        try:
            claims.run_permit(self._worker)
        except Exception as error:
            self._worker.ledger.record.failed(error)  # type: ignore[attr-defined]
        finally:
            self._free.release()


def act(told: Told) -> None:
    """This process as workers until its stdin ends. A line there is the new length of a batch, or ``unthrottled``, or
    empty; the answer says what was done since the last."""
    threading.stack_size(_STACK)
    # Each thread that waits for the interpreter wakes up after this long to ask for it: with hundreds of them, that
    # would be all that the machine does. They give it up by themselves at every call to the server.
    sys.setswitchinterval(_SWITCH_S)
    pace, record = Pace(told.batch_s), Record()
    _replace_batches(pace, record)
    settings = Settings.load(store=told.store, redis_url=told.url)
    store = Store.open(told.store)
    TimedLedger.record = record
    workers = [_start(told, settings, store, number, pace) for number in range(told.workers)]
    print(json.dumps({"ready": told.workers}), flush=True)
    for line in sys.stdin:
        if line.strip() == "unthrottled":
            pace.unthrottle(workers[:UNTHROTTLED])
        elif line.strip():
            pace.change(float(line))
        print(json.dumps(record.take()), flush=True)
    pace.end()
    print(json.dumps({"batches": record.batches, "given_up": record.given_up}), flush=True)
    # Thousands of threads need not be waited for.
    os._exit(0)


def _replace_batches(pace: Pace, record: Record) -> None:
    """Claims lead to a pause and a finish."""

    class Job:
        def __init__(self, job: str) -> None:
            self.id = job

    def run_batch(worker: WorkerContext, claim: Claim, lease: HeldLease, submitted: Any) -> None:
        submitted()
        pace.wait(worker.registration.id)
        if not pace.over:
            job: Any = Job(claim.job)
            try:
                batch._finish(worker, job, claim, PART)
            except Exception:
                record.given_up[f"{claim.job}:{claim.batch}"] += 1
                raise

    def finalize_claimed(worker: WorkerContext, claim: Claim, lease: HeldLease) -> None:
        state = worker.ledger.job(claim.job)
        if state is not None:
            counts = PartCounts(completed=state.completed, prompt_tokens=state.prompt_tokens)
            worker.ledger.finalized(claim.job, Status(claim.ending), counts, claim.token)

    claims.run_batch = run_batch
    claims.finalize_claimed = finalize_claimed


def _start(told: Told, settings: Settings, store: Store, number: int, pace: Pace) -> str:
    """Start a worker; its id."""
    model = f"model-{number % told.models}"
    ledger = TimedLedger.connect(told.url, store.id, lease_s=settings.lease_s, sweep_s=settings.sweep_s)
    permits = Permits(make_app(told.url, store.id), store.id)
    registration = WorkerInfo(
        id=f"simulated-{told.process}-{number:04}-{os.urandom(3).hex()}", model=model, fingerprint="5d41402abc4b2a76",
        host=f"simulated-{told.process}", pid=os.getpid(), device="none", dtype="none", engine="none",
        revision="simulated", slots=told.slots, version="0", started_at=time.time(),
    )  # fmt: skip
    engine: Any = NoEngine()
    tokenizer: Any = None
    context = WorkerContext(settings, store, ledger, permits, engine, tokenizer, registration)
    upkeep = Upkeep(context, Reconciler(store, ledger, permits, registration.id))
    delay_s = random.uniform(0.0, told.start_s)

    def start() -> None:
        # A permit that leads to nothing opens all connections: a worker that has worked before has them.
        permits.send(model)
        upkeep.start()

    starter = threading.Timer(delay_s, start)
    starter.daemon = True
    starter.start()
    Consumer(told.url, context, told.slots, pace, delay_s).start()
    return registration.id


def as_argument(told: Told) -> str:
    return json.dumps(asdict(told))
