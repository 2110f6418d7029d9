"""``promptmill exporter``: serves metrics of jobs and workers, and does the upkeep where no worker lives.

Three threads, for none may wait for what another waits for: one looks at Redis, one at the store, one reconciles and
ends jobs. A scrape reads what they last found.
"""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

from prometheus_client import GC_COLLECTOR, PLATFORM_COLLECTOR, PROCESS_COLLECTOR, CollectorRegistry

from jobs.errors import ForeignStoreError, InputError, RedisUnavailableError, UnavailableError, WrongStoreError
from jobs.ledger import Ledger
from jobs.recover import warn_of_other_stores
from jobs.settings import Settings
from jobs.telemetry.counters import Reason, recoveries
from jobs.telemetry.exposition import Probes, ProcessCollector, serve
from producer.connection import Connection
from producer.exporter.metrics import ExporterCollector, Known
from producer.exporter.observation import Observer
from producer.tend import tend

_log = logging.getLogger(__name__)

#: Seconds without an answer after which a part counts as away, if that is more than three rounds: a store that hangs
#: fails no call for a while.
_LATE_S = 30.0
#: Seconds that the end of the process waits for what its threads are at. All of it can be left in the middle.
_LAST_S = 1.0


class Rounds(threading.Thread):
    """Calls ``work`` every ``every_s`` seconds. What goes wrong is told once, and that it goes well again."""

    def __init__(
        self, name: str, work: Callable[[], None], every_s: float, stopped: threading.Event, *, after_s: float = 0.0
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._work, self._every_s, self._stopped = work, every_s, stopped
        self._soon = threading.Event()
        #: Seconds that a round waits after one that failed, if those are more.
        self._after_s = after_s
        self._not_before = 0.0
        self._well_at = time.monotonic()
        #: What went wrong in the last round; of the first one nothing is known.
        self.wrong: str | None = "it was not asked yet"

    def soon(self) -> None:
        """The next round is due."""
        self._soon.set()

    def hold_off(self) -> None:
        self._not_before = time.monotonic() + self._after_s

    @property
    def age_s(self) -> float:
        """Seconds since a round came to its end, or since the start."""
        return time.monotonic() - self._well_at

    @property
    def late(self) -> str | None:
        """Why the last round cannot be relied on; None if it can."""
        if self.wrong is None and self.age_s > max(_LATE_S, 3 * self._every_s):
            return f"no answer for {self.age_s:.0f} s"
        return self.wrong

    def run(self) -> None:
        told: str | None = None
        while not self._stopped.is_set():
            if time.monotonic() >= self._not_before:
                told = self._round(told)
            self._soon.wait(self._every_s)
            self._soon.clear()

    def _round(self, told: str | None) -> str | None:
        """What is told by now to be wrong."""
        try:
            self._work()
        except UnavailableError as error:
            self._fail(error)
            if told is None:
                _log.warning("%s: %s; tried again until it works", self.name, error)
            return str(error)
        except Exception as error:
            self._fail(error)
            if not self._stopped.is_set():
                _log.exception("%s failed and goes on", self.name)
            return str(error)
        if told is not None:
            _log.warning("%s: works again", self.name)
            if reason := _RECONNECTED.get(self.name):
                recoveries.count(reason)
        # Last: whoever sees that all is well can see the recovery too.
        self.wrong, self._well_at = None, time.monotonic()
        return None

    def _fail(self, error: Exception) -> None:
        self.wrong = str(error) or type(error).__name__
        self.hold_off()


#: The threads by what they ask.
_REDIS, _STORE, _UPKEEP = "redis", "store", "upkeep"
_RECONNECTED = {_REDIS: Reason.REDIS_RECONNECTED, _STORE: Reason.STORE_RECONNECTED}


class Exporter:
    """The exporter's threads, and what they know. ``models`` are listed even if they never had a job."""

    def __init__(self, settings: Settings, models: Iterable[str] = ()) -> None:
        self._settings = settings
        self._observer = Observer(models)
        self._opening = threading.Lock()
        self._connection: Connection | None = None
        self._stopped = threading.Event()
        #: Takes what ends the process; None is a signal, whose handler may use no other kind of queue.
        self.ending: SimpleQueue[InputError | WrongStoreError | None] = SimpleQueue()
        every_s, lease_s = settings.sweep_s, settings.lease_s
        self.redis = Rounds(_REDIS, self._look_at_redis, every_s, self._stopped)
        self.store = Rounds(_STORE, self._look_at_store, every_s, self._stopped)
        # After an outage the leases of the fleet are heard first; a sweep at once would return them all.
        self.upkeep = Rounds(_UPKEEP, self._tend, every_s, self._stopped, after_s=lease_s)
        self.known = Known(up=self._up, sweep_age_s=lambda: self.upkeep.age_s)

    def start(self) -> None:
        for rounds in (self.store, self.redis, self.upkeep):
            rounds.start()

    def stop(self) -> None:
        self._stopped.set()
        for rounds in (self.store, self.redis, self.upkeep):
            rounds.soon()
            rounds.join(_LAST_S)

    def ready(self) -> str | None:
        """What did not answer in the last round."""
        wrong = next((f"{rounds.name}: {rounds.late}" for rounds in (self.redis, self.store) if rounds.late), None)
        return wrong or ("the jobs were not looked at yet" if self.known.ledger is None else None)

    def _up(self) -> dict[str, bool]:
        return {rounds.name: rounds.late is None for rounds in (self.redis, self.store)}

    @contextmanager
    def _one_opens(self) -> Iterator[None]:
        """One thread at a time opens what all share. A setting that makes no sense, or that names a store which is not
        there, ends it, and the process.
        """
        with self._opening:
            try:
                yield
            except (InputError, WrongStoreError) as error:
                self.ending.put(error)
                raise SystemExit from error

    def _open(self) -> Connection:
        """The connection, once the store could be opened. Raises UnavailableError."""
        with self._one_opens():
            if self._connection is None:
                self._connection = Connection(self._settings, create=True)
            return self._connection

    def _ledger(self, connection: Connection) -> Ledger:
        with self._one_opens():
            if not connection.has_ledger:
                warn_of_other_stores(connection.ledger, connection.store)
            return connection.ledger

    def _look_at_redis(self) -> None:
        try:
            if self._connection is None:
                # Until the store has said which one it is, all that can be told is whether Redis answers.
                with self._one_opens():
                    Ledger.connect(self._settings.redis, "none").close()
            else:
                ledger = self._ledger(self._connection)
                # The keys of an earlier release stay where they were, and nobody keeps them up.
                ledger.check_layout()
                self.known.ledger = self._observer.look(ledger)
        except RedisUnavailableError:
            self.upkeep.hold_off()
            raise

    def _look_at_store(self) -> None:
        first, store = self._connection is None, self._open().store
        if first:
            self.redis.soon()
        try:
            store.require()
        except ForeignStoreError:
            self._connection = None  # the next round opens the one that is there
            raise
        free = store.free_bytes()
        if free is not None and store.root is not None:
            least = round(self._settings.min_free_mb * 2**20)
            self.known.store_bytes = free, least, shutil.disk_usage(store.root).total

    def _tend(self) -> None:
        connection = self._open()
        self._ledger(connection)
        tend(connection, *(self.known.ledger.ending if self.known.ledger else ()))


def run_exporter(settings: Settings, port: int, host: str, models: Iterable[str] = ()) -> None:
    """Serve until SIGTERM or SIGINT. Raises InputError where the port cannot be had, or a setting makes no sense, and
    WrongStoreError.
    """
    exporter, registry = Exporter(settings, models), CollectorRegistry()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: exporter.ending.put(None))
    for collector in (ProcessCollector("exporter"), ExporterCollector(exporter.known), PROCESS_COLLECTOR,
                      PLATFORM_COLLECTOR, GC_COLLECTOR):  # fmt: skip
        registry.register(collector)
    stop_serving = serve("--port", port, Probes(ready=exporter.ready), host, registry)
    exporter.start()
    _log.info("metrics are served on port %d", port)
    try:
        if refused := exporter.ending.get():
            raise refused
    finally:
        exporter.stop()
        stop_serving()
