"""Processes of a test's own: workers, and programs that go on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.forkserver import fork_worker
from tests.machines import Host
from tests.patience import PATIENCE_S, wait_until


class Process(ABC):
    """A worker, or a command that goes on, in a session of its own; its output is in ``log``."""

    pid: int

    def __init__(self, log: Path) -> None:
        self.log = log
        log.touch()

    @property
    @abstractmethod
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None of one that lives."""

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended already gets none."""
        # It may end just now.
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """The exit status, once there is one. Raises TimeoutError."""
        wait_until(f"process {self.pid} to end", lambda: not self.alive, timeout_s, every_s=0.02)
        assert self.returncode is not None
        return self.returncode

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        self.send(signal.SIGKILL)
        self.wait()


class Command(Process):
    """A program that was started as users start it."""

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        host: Host | None = None,
        **options: Any,
    ) -> None:
        def first() -> None:
            # Tests that run under nohup are to see what those see that do not.
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            if host is not None:
                host.enter()

        super().__init__(log)
        self._output = log.open("ab")
        self.popen = subprocess.Popen(
            command, stdout=self._output, stderr=self._output, env=environment, start_new_session=True,
            preexec_fn=first, **options,
        )  # fmt: skip
        self.pid = self.popen.pid

    @property
    def returncode(self) -> int | None:
        return self.popen.poll()

    def close(self) -> None:
        super().close()
        if self.popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.popen.stdin.close()
        self._output.close()


class Worker(Process):
    """A worker that did not have to import anything; see tests/forkserver.py."""

    def __init__(
        self, flags: Sequence[str], environment: dict[str, str], folder: Path, log: Path, host: Host | None = None
    ) -> None:
        super().__init__(log)
        self._process = fork_worker(["start", *flags], environment, folder, log, host.enter if host else None)
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode
