"""How a worker ends: it claims no more, and what runs gets a grace period."""

from __future__ import annotations

import logging
import os
import signal
import threading

from celery import bootsteps
from celery.worker import state

from worker.context import WorkerContext
from worker.heartbeat import Upkeep
from worker.notify import STOPPING

_log = logging.getLogger(__name__)


class Drain:
    """The end of a worker: it claims no more, gives what runs a grace period, then hands it back."""

    def __init__(self, context: WorkerContext, grace_s: float) -> None:
        self._context = context
        self._timer = threading.Timer(grace_s, context.abandoned.set)
        self._timer.daemon = True
        self._grace_s = grace_s
        #: Whether it was a signal that ended the worker.
        self.asked = False

    def by_signal(self, **_: object) -> None:
        """The first signal begins the drain; another one ends the grace period."""
        if self.asked:
            self._context.abandoned.set()
        self.asked = True
        self.begin()

    def begin(self) -> None:
        if self._context.draining.is_set():
            return
        self._context.draining.set()
        self._context.notifier.tell(STOPPING)
        _log.info("draining: %d batches in hand, %g s of grace", len(self._context.leases), self._grace_s)
        self._timer.start()

    def cancel(self) -> None:
        self._timer.cancel()


def drain_step(drain: Drain, upkeep: Upkeep) -> type[bootsteps.StartStopStep]:
    """The part of Celery's worker that begins ``drain`` whatever stops the worker, and sees to its signals.

    From then on the worker is listed: it ends as it is told to.

    Without it a consumer that dies (of a message that is no JSON, for one) waits for the threads of the pool, which
    go on for as long as there is work: a process that lives and takes no permits.
    """

    def warm(*_: object) -> None:
        drain.by_signal()
        state.should_stop = os.EX_OK

    class DrainStep(bootsteps.StartStopStep):  # type: ignore[misc]
        # Started after Celery installed its handlers; closed before the pool waits for its threads.
        requires = ("celery.worker.components:Pool",)

        def start(self, parent: object) -> None:
            # Celery's cold shutdown (SIGQUIT, or SIGINT twice) is not implemented for a pool of threads, its restart
            # (SIGHUP) starts a command line that is not ours, and its warm one prints a line that is no log line.
            signal.signal(signal.SIGTERM, warm)
            signal.signal(signal.SIGINT, warm)
            signal.signal(signal.SIGQUIT, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if hangup is signal.SIG_IGN else warm)
            upkeep.start()

        def close(self, parent: object) -> None:
            drain.begin()

    # nohup: the process is to outlive its terminal.
    hangup = signal.getsignal(signal.SIGHUP)
    return DrainStep
