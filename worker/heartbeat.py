"""The thread that keeps a worker's leases alive while its engine progresses, and does its share of the upkeep."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

from jobs.errors import UnavailableError
from jobs.ledger import Beat, LeaseState
from jobs.reconcile import Reconciler
from worker.context import WorkerContext

_log = logging.getLogger(__name__)

#: The exit status of a process whose engine died or stands still (EX_TEMPFAIL): its supervisor starts it again,
#: and the leases that it held expire.
EXIT_ENGINE = 75


class Pulse:
    """Watches the engine's counters: whether it progresses, and how fast."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
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
    def stalled(self) -> bool:
        return time.monotonic() - self._moved > self._stall_s


class Upkeep(threading.Thread):
    """Heartbeats, registration and reconcile of one worker process, on one thread.

    A heartbeat that cannot be delivered changes nothing: rows go on, and the store decides.
    """

    def __init__(self, context: WorkerContext, reconciler: Reconciler, stall_s: float) -> None:
        super().__init__(name="upkeep", daemon=True)
        self._context = context
        self._reconciler = reconciler
        self._pulse = Pulse(stall_s)
        self._stopped = threading.Event()
        settings = context.settings
        self._beat_s = min(5.0, settings.lease_s / 6)
        self._tick_s = min(self._beat_s, settings.sweep_s)
        # One round of upkeep at once: a worker that joins restarts a chain that stalled for want of one.
        self._next_beat = self._next_sweep = 0.0

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                self.tick()
            except UnavailableError as error:
                _log.warning("upkeep waits: %s", error)
                # After an outage the leases of the fleet are heard first; a sweep now would return them all.
                self._next_sweep = time.monotonic() + self._context.settings.lease_s
            except Exception:
                _log.exception("upkeep failed and goes on")
            self._stopped.wait(self._tick_s)

    def stop(self) -> None:
        self._stopped.set()

    def tick(self) -> None:
        """What is due now. Raises UnavailableError."""
        now = time.monotonic()
        self._follow_parent()
        if now >= self._next_beat:
            self._next_beat = now + self._beat_s
            self._beat()
        if now >= self._next_sweep:
            self._next_sweep = now + self._context.settings.sweep_s
            self._reconciler.run_once()
        self._top_up()

    def _top_up(self) -> None:
        """See to it that a permit is at hand when this worker's engine next has room.

        The chain carries as many permits as it was started with, and busy workers may hold them all.
        """
        context = self._context
        if context.draining.is_set() or context.waiting:
            return
        queued = context.ledger.queue_length(context.permits.queue_key(context.model))
        if not queued and context.ledger.claimable(context.model):
            context.permits.send(context.model)

    def _follow_parent(self) -> None:
        """A local run that was killed leaves its workers behind: they drain and end."""
        parent = self._context.parent_pid
        if parent is not None and os.getppid() != parent and not self._context.draining.is_set():
            _log.warning("the local run that started this worker has ended: draining")
            os.kill(os.getpid(), signal.SIGTERM)

    def _beat(self) -> None:
        context, stats = self._context, self._context.engine.stats()
        idle = stats.running_rows == 0 and stats.waiting_rows == 0
        self._pulse.measure(stats.steps, stats.rows, stats.completion_tokens, idle)
        if context.engine.failure is not None or self._pulse.stalled:
            _log.critical("the engine %s: the process ends", "died" if context.engine.failure else "stands still")
            os._exit(EXIT_ENGINE)
        context.ledger.register(context.info(self._pulse.rows_per_s, self._pulse.tokens_per_s))
        held = list(context.leases)
        beats = [
            Beat(lease.claim.job, lease.claim.batch, lease.claim.token, lease.rows_done, lease.tokens) for lease in held
        ]
        states = context.ledger.heartbeat(beats) if beats else {}
        for lease in held:
            state = states.get((lease.claim.job, lease.claim.batch), LeaseState.HELD)
            if state is not LeaseState.HELD and lease.state is LeaseState.HELD:
                _log.info("job %s batch %d: %s", lease.claim.job, lease.claim.batch, state)
                lease.drop(state)
