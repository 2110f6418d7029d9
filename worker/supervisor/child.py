"""One device's process: started, listened to, told to stop, killed if it does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from selectors import EVENT_READ, BaseSelector

from worker.notify import READY
from worker.supervisor.lines import Lines, labelled_json, labelled_text
from worker.supervisor.plan import ChildPlan, Plan


@dataclass(frozen=True, slots=True)
class End:
    """How a process ended: ``status`` is negative for a signal."""

    status: int
    #: Whether the supervisor had told it to.
    told: bool
    ran_s: float
    last_words: str

    def __str__(self) -> str:
        how = f"was ended by signal {-self.status}" if self.status < 0 else f"ended with status {self.status}"
        return f"{how} ({self.last_words})" if self.last_words else how


class Child:
    """The place of one process, which is there or not."""

    def __init__(self, spec: ChildPlan, plan: Plan, selector: BaseSelector, write: Callable[[str], None]) -> None:
        self._spec, self._plan, self._selector, self._write = spec, plan, selector, write
        self._label = (labelled_json if plan.log_format == "json" else labelled_text)(spec.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: Lines | None = None
        self._notes: socket.socket | None = None
        self._started = 0.0
        #: When to kill it; set once it is told to stop.
        self._kill_at: float | None = None
        #: Whether it is listed as a live worker and takes work.
        self.registered = False
        #: When to start it, on the clock of time.monotonic; ends that came too soon, in a row; how it ended last.
        self.start_at = 0.0
        self.failures = 0
        self.end: End | None = None
        #: Whether that has still to be said.
        self.untold = False

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def alive(self) -> bool:
        return self._process is not None

    @property
    def told(self) -> bool:
        """Whether it has been told to stop, and has not ended yet."""
        return self._kill_at is not None

    @property
    def due_at(self) -> float:
        """When it wants to be looked at next, if nothing happens before."""
        if not self.alive:
            return self.start_at
        return self._kill_at if self._kill_at is not None else float("inf")

    def start(self) -> None:
        read_end, write_end = os.pipe()
        notes, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        command = [*self._plan.command, *self._spec.flags, "--parent", str(os.getpid()), "--notify-fd"]
        try:
            # A session of its own: Ctrl-C in a terminal is the supervisor's to hand on.
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())], stdin=subprocess.DEVNULL, stdout=write_end, stderr=write_end,
                env={**os.environ, **self._spec.environment}, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
        except OSError:
            os.close(read_end)
            notes.close()
            raise
        finally:
            os.close(write_end)
            theirs.close()
        notes.setblocking(False)
        self._notes, self._lines = notes, Lines(read_end, self._label, self._write)
        self._selector.register(read_end, EVENT_READ, self._read)
        self._selector.register(self._notes, EVENT_READ, self._listen)
        self._started, self._kill_at, self.registered = time.monotonic(), None, False

    def stop(self) -> None:
        """SIGTERM; the second ends its grace period."""
        if self._process is None:
            return
        self.registered = False
        self._process.send_signal(signal.SIGTERM)
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._plan.grace_s + self._plan.kill_after_s

    def kill_if_due(self) -> bool:
        """SIGKILL to one that was told to stop and has not; whether it was sent."""
        if self._process is None or self._kill_at is None or time.monotonic() < self._kill_at:
            return False
        self._process.kill()
        self._kill_at = float("inf")
        return True

    def reap(self) -> End | None:
        """How it ended, if it has just ended."""
        if self._process is None or (status := self._process.poll()) is None:
            return None
        assert self._lines is not None
        self._lines.finish()
        self.end = End(status, self.told, time.monotonic() - self._started, self._lines.last_words)
        self._forget()
        return self.end

    def _read(self) -> None:
        assert self._lines is not None
        if not self._lines.read():  # it has closed its end, and would be readable for ever
            self._selector.unregister(self._lines.fd)

    def _listen(self) -> None:
        assert self._notes is not None
        try:
            said = self._notes.recv(4096).decode(errors="replace")
        except OSError:  # of a process that has ended; that is seen to elsewhere
            return
        if READY in said.splitlines() and not self.told:
            self.registered = True

    def _forget(self) -> None:
        """Close what connected the supervisor with a process that has ended."""
        assert self._lines is not None
        assert self._notes is not None
        if self._lines.fd in self._selector.get_map():
            self._selector.unregister(self._lines.fd)
        os.close(self._lines.fd)
        self._selector.unregister(self._notes)
        self._notes.close()
        self._process, self._kill_at, self.registered = None, None, False
