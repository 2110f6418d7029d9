"""The threads that keep a worker's leases alive while its engine progresses, and do its share of the upkeep."""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time

from jobs.errors import ForeignStoreError, LayoutError, StoreUnavailableError, UnavailableError
from jobs.ledger import FINALIZE, Beat, LeaseState
from jobs.reconcile import Reconciler
from jobs.telemetry.counters import Reason, recoveries
from worker.context import WorkerContext

_log = logging.getLogger(__name__)

#: The exit status of a process whose engine died or stands still, or whose consumer died (EX_TEMPFAIL): its
#: supervisor starts it again, and the leases that it held expire.
EXIT_ENGINE = 75

#: Seconds that the end of the process waits for a heartbeat under way, and for a reconcile, which may take minutes
#: and can be left in the middle at any time.
_LAST_BEAT_S, _LAST_SWEEP_S = 10.0, 0.5


class Pulse:
    """Watches the engine's counters: whether it progresses, and how fast."""

    def __init__(self) -> None:
        self._steps = self._rows = self._tokens = 0
        self._moved = self._measured = time.monotonic()
        self.rows_per_s = self.tokens_per_s = 0.0

    def measure(self, steps: int, rows: int, tokens: int, idle: bool) -> None:
        now = time.monotonic()
        elapsed = max(now - self._measured, 1e-3)
        self.rows_per_s, self.tokens_per_s = (rows - self._rows) / elapsed, (tokens - self._tokens) / elapsed
        if idle or steps != self._steps:
            self._moved = now
        self._steps, self._rows, self._tokens, self._measured = steps, rows, tokens, now

    @property
    def still_s(self) -> float:
        """Seconds since the engine last progressed, or had nothing to do."""
        return time.monotonic() - self._moved


class Upkeep:
    """A worker's heartbeats and its sweeps, on a thread each: a sweep may recover for minutes, leases may not wait."""

    def __init__(self, context: WorkerContext, reconciler: Reconciler) -> None:
        self._stopped = threading.Event()
        self._sweeper = Sweeper(context, reconciler, self._stopped)
        self.heartbeat = Heartbeat(context, self._sweeper, self._stopped)

    def start(self) -> None:
        self.heartbeat.start()
        self._sweeper.start()

    def stop(self) -> None:
        """Returns when no heartbeat is under way: one that came late would list a worker that has gone."""
        self._stopped.set()
        if self.heartbeat.ident is not None:  # else the worker failed before it was ready
            self.heartbeat.join(_LAST_BEAT_S)
            self._sweeper.join(_LAST_SWEEP_S)


class Sweeper(threading.Thread):
    """Reconciles every ``sweep_s``, at once at first: a worker that joins restarts a chain that stalled for want of
    one."""

    def __init__(self, context: WorkerContext, reconciler: Reconciler, stopped: threading.Event) -> None:
        super().__init__(name="sweep", daemon=True)
        self._worker = context
        self._settings = context.settings
        self._reconciler = reconciler
        self._stopped = stopped
        self._not_before = 0.0

    def hold_off(self) -> None:
        """After an outage the leases of the fleet are heard first; a sweep now would return them all."""
        self._not_before = time.monotonic() + self._settings.lease_s

    def run(self) -> None:
        while not self._stopped.is_set():
            if time.monotonic() >= self._not_before:
                self._sweep()
            # Not in step with others: each has its turns, for a job may be of a version that only some of them read.
            self._stopped.wait(self._settings.sweep_s * random.uniform(0.7, 1.3))

    def _sweep(self) -> None:
        try:
            self._look_at_store()
            self._reconciler.run_once()
        except LayoutError as error:
            self._give_way(error, "workers of a later release have taken over")
        except ForeignStoreError as error:
            self._give_way(error, str(error))
        except UnavailableError as error:
            self.hold_off()
            _log.warning("upkeep waits: %s", error)
        except Exception:
            if not self._stopped.is_set():
                _log.exception("upkeep failed and goes on")

    def _look_at_store(self) -> None:
        """Raises ForeignStoreError where another store is in its place, whose permits this worker does not get.

        Of a remote store that is not to be expected, and asking would cost. One that is gone is waited for elsewhere.
        """
        store = self._worker.store
        if store.is_local:
            try:
                store.require()
            except ForeignStoreError:
                raise
            except StoreUnavailableError:
                return

    def _give_way(self, error: LayoutError | ForeignStoreError, why: str) -> None:
        """Drain and end: what is in hand can still be committed where the store is the same."""
        if self._worker.outdated is None:
            self._worker.outdated = error
            _log.critical("%s: draining", why)
            os.kill(os.getpid(), signal.SIGTERM)


class Heartbeat(threading.Thread):
    """Registers the worker, extends its leases, watches its engine, and keeps a permit at hand.

    A heartbeat that cannot be delivered changes nothing: rows go on, and the store decides.
    """

    def __init__(self, context: WorkerContext, sweeper: Sweeper, stopped: threading.Event) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self._worker = context
        self._sweeper = sweeper
        self._pulse = Pulse()
        self._stopped = stopped
        settings = context.settings
        self._beat_s = min(5.0, settings.lease_s / 6)
        self._tick_s = min(self._beat_s, settings.sweep_s)
        self._next_beat = 0.0
        self._registered = False

    def unwell(self) -> str | None:
        """What is wrong with the engine. A process that sees it ends itself: this is for one that does not."""
        if self._worker.engine.failure is not None:
            return "the engine died"
        if self.ident is not None and self._pulse.still_s > self._worker.settings.stall_s:
            return "the engine stands still"
        return None

    def unready(self) -> str | None:
        """Why the worker takes no batches: it does from its registration to its drain."""
        if self._worker.draining.is_set():
            return "draining"
        return self.unwell() if self._registered else "not registered yet"

    def run(self) -> None:
        away = False
        while not self._stopped.is_set():
            try:
                self._tick()
                if away:
                    recoveries.count(Reason.REDIS_RECONNECTED)
                away = False
            except UnavailableError as error:
                away = True
                self._sweeper.hold_off()
                _log.warning("heartbeats wait: %s", error)
            except Exception:
                _log.exception("a heartbeat failed; they go on")
            self._stopped.wait(self._tick_s)

    def _tick(self) -> None:
        """What is due now. Raises UnavailableError."""
        now = time.monotonic()
        self._follow_parent()
        if now >= self._next_beat:
            self._next_beat = now + self._beat_s
            self.beat()
        self._top_up()

    def _top_up(self) -> None:
        """See to it that a permit is at hand when this worker's engine next has room.

        The chain carries as many permits as it was started with, and busy workers may hold them all.
        """
        context = self._worker
        if context.draining.is_set() or context.waiting:
            return
        if not context.permit_waits and context.ledger.has_work(context.registration):
            context.permits.send(context.model)

    def _follow_parent(self) -> None:
        """A local run or a supervisor that was killed leaves its workers behind: they drain and end."""
        parent = self._worker.parent_pid
        if parent is not None and os.getppid() != parent and not self._worker.draining.is_set():
            _log.warning("the process that started this worker has ended: draining")
            os.kill(os.getpid(), signal.SIGTERM)

    def beat(self) -> None:
        """One heartbeat: the registration and the leases, of which the ledger says which are still held.

        Batches whose engine has stood still for half of ``stall_s`` are not extended: others may have them. Should it
        go on before they do, its next heartbeat revives them. Ends the process where the engine died, or has stood
        still for all of it. Raises UnavailableError.
        """
        context, stats = self._worker, self._worker.engine.stats()
        idle = stats.running_rows == 0 and stats.waiting_rows == 0
        self._pulse.measure(stats.steps, stats.rows, stats.completion_tokens, idle)
        if context.engine.failure is not None or self._pulse.still_s > context.settings.stall_s:
            _log.critical("the engine %s: the process ends", "died" if context.engine.failure else "stands still")
            os._exit(EXIT_ENGINE)
        has_work = any(lease.claim.kind != FINALIZE for lease in context.leases)
        worked = context.pace.look(stats, has_work)
        context.ledger.register(context.info(self._pulse.rows_per_s, self._pulse.tokens_per_s), worked=worked)
        self._registered = True
        context.notifier.ready()
        progresses = self._pulse.still_s <= context.settings.stall_s / 2
        held = [lease for lease in context.leases if progresses or lease.claim.kind == FINALIZE]
        beats = [
            Beat(lease.claim.job, lease.claim.batch, lease.claim.token, lease.rows_done, lease.tokens) for lease in held
        ]
        states = context.ledger.heartbeat(beats) if beats else {}
        for lease in held:
            state = states.get((lease.claim.job, lease.claim.batch), LeaseState.HELD)
            if state is not LeaseState.HELD and lease.state is LeaseState.HELD:
                if state is LeaseState.LOST:
                    recoveries.count(Reason.LEASE_LOST)
                claim = lease.claim
                fields = {"job": claim.job, "batch": claim.batch, "attempt": claim.attempt}
                _log.info("job %s batch %d: %s", claim.job, claim.batch, state, extra=fields)
                lease.drop(state)
