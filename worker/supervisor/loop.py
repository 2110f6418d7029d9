"""The supervisor: one loop that waits for signals, for what the processes say, and for what is due."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from selectors import EVENT_READ, DefaultSelector

from jobs.console import EXIT_INTERNAL
from jobs.errors import one_line
from worker.notify import STOPPING, Notifier
from worker.supervisor.child import Child, End
from worker.supervisor.plan import Plan
from worker.supervisor.restarts import EXIT_USAGE, back_off_s, failures_after, gives_up

_log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
#: Seconds after which all are looked at although nothing happened.
_LOOK_S = 5.0


def write_line(line: str) -> None:
    """To stderr; whether anybody reads it is no concern of the work."""
    with suppress(OSError):
        sys.stderr.buffer.write(line.encode(errors="replace") + b"\n")
        sys.stderr.buffer.flush()


class Supervisor:
    """Keeps the processes of ``plan`` alive until it is told to stop."""

    def __init__(self, plan: Plan, notifier: Notifier) -> None:
        self._notifier = notifier
        self._log_format = plan.log_format
        self._selector = DefaultSelector()
        self._children = [Child(spec, plan, self._selector, write_line) for spec in plan.children]
        self._told = False
        self._ever_registered = False
        #: What is wrong, once there is nothing to wait for.
        self._verdict: list[str] | None = None
        self._serving = 0
        #: Of a rolling restart: those whose turn is still to come, and the one that the next waits for, which served
        #: before or did not.
        self._to_roll: deque[Child] = deque()
        self._rolled: Child | None = None
        self._rolled_served = False
        self._has_terminal = _terminal_is_there()

    def run(self) -> int:
        """The exit status: 0 if all processes drained when they were told to."""
        with self._signals() as wakeups:
            while True:
                for child in self._children:
                    self._look_after(child)
                self._count()
                self._roll_on()
                self._give_up_on_mistakes()
                if self._told and not any(child.alive for child in self._children):
                    return self._outcome()
                self._wait(wakeups)

    # -- What happens.

    @contextmanager
    def _signals(self) -> Iterator[int]:
        """Signals come as bytes through a pipe, the end of which this gives, in their order."""
        wakeups, write_end = os.pipe()
        os.set_blocking(wakeups, False)
        os.set_blocking(write_end, False)
        self._selector.register(wakeups, EVENT_READ)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        for number in _SIGNALS:
            # nohup: the process is to outlive its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        try:
            yield wakeups
        finally:
            signal.set_wakeup_fd(-1)
            os.close(wakeups)
            os.close(write_end)

    def _wait(self, wakeups: int) -> None:
        """Until something happens or is due; then see to what was said."""
        # Once all are told to stop, those that have ended are not started again.
        due = min((child.due_at for child in self._children if child.alive or not self._told), default=0.0)
        for key, _ in self._selector.select(min(max(due - time.monotonic(), 0.0), _LOOK_S)):
            if key.fd == wakeups:
                for number in os.read(wakeups, 4096):
                    self._obey(signal.Signals(number))
            else:
                key.data()

    def _obey(self, number: signal.Signals) -> None:
        if number == signal.SIGHUP and not self._terminal_has_gone():
            self._roll()
        elif number != signal.SIGCHLD:
            self._stop()

    def _terminal_has_gone(self) -> bool:
        """Whether SIGHUP means what it was made for: then a supervisor ends, as a single worker does."""
        return self._has_terminal and not _terminal_is_there()

    # -- Each process.

    def _look_after(self, child: Child) -> None:
        if end := child.reap():
            self._bury(child, end)
        if child.kill_if_due():
            _log.warning("%s has not ended by itself: it is killed, its batches come back by their leases", child.name)
        if not child.alive and not self._told and time.monotonic() >= child.start_at:
            if child.untold:
                _log.warning("%s %s and is started again", child.name, child.end)
                child.untold = False
            self._start(child)

    def _start(self, child: Child) -> None:
        try:
            child.start()
        except OSError as error:  # no memory or processes left: there may be later
            child.failures += 1
            child.start_at = time.monotonic() + back_off_s(child.failures, EXIT_INTERNAL, random.random())
            _log.warning("%s cannot be started, and is tried again: %s", child.name, error)

    def _bury(self, child: Child, end: End) -> None:
        """See to when a process that has ended is started again."""
        if end.told:
            child.failures, child.start_at = 0, 0.0
            _log.info("%s %s, as it was told to", child.name, end)
            return
        child.failures = failures_after(child.failures, end.ran_s)
        wait_s = back_off_s(child.failures, end.status, random.random())
        child.start_at = time.monotonic() + wait_s
        # What is wrong may be wrong for all of them, and is then said once.
        child.untold = end.status == EXIT_USAGE and not self._ever_registered
        if not self._told and not child.untold:
            _log.warning("%s %s and is started again in %.1f s", child.name, end, wait_s)

    def _count(self) -> None:
        """Tell how many processes serve, when that has changed."""
        serving = sum(child.registered for child in self._children)
        if serving == self._serving:
            return
        if serving > self._serving:
            self._ever_registered = True
            self._notifier.ready()
        self._serving = serving
        names = ", ".join(child.name for child in self._children if child.registered)
        said = f"{serving} of {len(self._children)} processes serve{': ' + names if names else ''}"
        self._notifier.tell(f"STATUS={said}")
        _log.info("%s", said)

    # -- All of them.

    def _stop(self) -> None:
        """SIGTERM to all; when it comes to that again their grace period is over."""
        first, self._told = not self._told, True
        self._to_roll.clear()
        if first:
            self._notifier.tell(STOPPING)
        for child in self._children:
            if not (first and child.told):  # one of a rolling restart drains already
                child.stop()

    def _give_up_on_mistakes(self) -> None:
        ends = [child.end for child in self._children]
        if not self._told and gives_up([end.status if end else None for end in ends], self._ever_registered):
            self._verdict = [end.last_words for end in ends if end and end.last_words]
            self._stop()

    def _outcome(self) -> int:
        if self._verdict is not None:
            for sentence in dict.fromkeys(map(one_line, self._verdict)):
                if self._log_format == "json":
                    _log.critical("%s", sentence)
                else:
                    write_line(f"error: {sentence}")
            return EXIT_USAGE
        for child in self._children:
            end = child.end
            # While it loads its model a process has nothing to drain, and ends by the signal.
            if end and end.told and end.status not in (0, -signal.SIGTERM):
                _log.warning("%s %s: its batches come back by their leases", child.name, end)
                return end.status if end.status > 0 else EXIT_INTERNAL
        return 0

    def _roll(self) -> None:
        """Begin to replace every process, one after another, those first that do not serve."""
        if self._told:
            return
        _log.info("rolling restart of %d processes", len(self._children))
        self._to_roll = deque(sorted(self._children, key=lambda child: child.registered))
        for child in self._children:
            # Whoever asks for it has perhaps mended what was wrong.
            child.failures, child.start_at = 0, 0.0

    def _roll_on(self) -> None:
        """Each has to serve before the next is stopped; one that did not serve before has to serve, or to fail."""
        if self._rolled is not None and (
            self._rolled.registered or (self._rolled.failures and not self._rolled_served)
        ):
            self._rolled = None
            if not self._to_roll:
                _log.info("rolling restart: done")
        if self._to_roll and self._rolled is None:
            self._rolled = self._to_roll.popleft()
            self._rolled_served = self._rolled.registered
            if not self._rolled.told:
                self._rolled.stop()


def _terminal_is_there() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
