"""The local run: worker processes on this machine, started, watched, restarted and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from jobs.errors import InputError, ModelError
from jobs.secret_files import redis_variables
from jobs.spec import split_model
from jobs.store import Store

#: Seconds. Shorter than elsewhere: on one machine no network delays a heartbeat, and nobody likes to wait.
LEASE_S = 20.0
#: The exit status of a worker whose engine died: it wants to be started again.
_EXIT_ENGINE = 75
#: A worker that ends sooner than this after its start counts as failed to start.
_QUICK_DEATH_S = 20.0
#: Failed starts in a row before the run gives up; and those of a worker that a signal ended, or its engine (75), which
#: may be a row's doing: finding out which row takes six.
_MAX_QUICK_DEATHS, _MAX_QUICK_CRASHES = 3, 10
#: Seconds between two starts at most.
_MAX_BACK_OFF_S = 5.0
#: Between SIGTERM and SIGKILL.
_STOP_TIMEOUT_S = 20.0


def check_model(model: str) -> None:
    """Find, before a job is accepted, what a worker would stumble over. Raises InputError.

    Only a worker knows whether a model loads; but a folder that is not there, or is no model, is known at once.
    """
    if find_spec("torch") is None or find_spec("transformers") is None:
        raise InputError("a local run needs the worker: pip install 'promptmill[worker]'")
    source = split_model(model)[1]
    folder = Path(os.path.expanduser(source))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"--model {model}: {folder} is not a model, it has no config.json")
    elif source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise InputError(f"--model {model}: there is no folder {source}")


@dataclass(slots=True)
class _Worker:
    """One supervised process; ``failures`` counts quick deaths in a row."""

    number: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    not_before: float = 0.0
    #: Where this process's own lines begin in the log.
    log_start: int = 0


@dataclass(slots=True)
class LocalWorkers:
    """``count`` worker processes that serve ``model`` (NAME=PATH_OR_ID) to one store.

    Use as a context manager; call ``supervise`` now and then: it restarts what has died, with back-off.
    """

    model: str
    count: int
    redis_url: str
    store: Store
    log_folder: Path
    arguments: tuple[str, ...] = ()
    _workers: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> LocalWorkers:
        self.log_folder.mkdir(parents=True, exist_ok=True)
        for number in range(1, self.count + 1):
            worker = _Worker(number, self.log_folder / f"worker-{number}.log")
            self._workers.append(worker)
            self._start(worker)
        return self

    def __exit__(self, *_: object) -> None:
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def supervise(self) -> None:
        """Restart workers that have died. Raises ModelError when one cannot be kept alive."""
        for worker in self._workers:
            if worker.process is None:
                if time.monotonic() >= worker.not_before:
                    self._start(worker)
            elif worker.process.poll() is not None:
                self._bury(worker, worker.process.returncode)

    def _bury(self, worker: _Worker, status: int) -> None:
        worker.process = None
        quick = time.monotonic() - worker.started < _QUICK_DEATH_S
        worker.failures = worker.failures + 1 if quick else 0
        # 2 is bad usage or a model that cannot be loaded: a restart would say the same.
        most = _MAX_QUICK_CRASHES if status < 0 or status == _EXIT_ENGINE else _MAX_QUICK_DEATHS
        if status == 2 or worker.failures >= most:
            raise ModelError(f"the worker cannot serve {self.model}: {_last_words(worker)} (log: {worker.log})")
        sys.stderr.write(
            f"worker {worker.number} ended with status {status} and is started again (log: {worker.log}); "
            f"the rows that it had in hand come back within {LEASE_S:g} s\n"
        )
        worker.not_before = time.monotonic() + min(2.0**worker.failures - 1, _MAX_BACK_OFF_S)

    def _start(self, worker: _Worker) -> None:
        threads = max(1, (os.cpu_count() or 1) // self.count)
        command = [sys.executable, "-m", "worker", "start", "--model", self.model]
        command += ["--threads", str(threads), "--grace", "5", "--parent", str(os.getpid()), *self.arguments]
        environment = {
            **os.environ,
            **redis_variables(self.redis_url),
            "PROMPTMILL_STORE": self.store.uri,
            # One that is started again when the store has gone does not found another in its place.
            "PROMPTMILL_STORE_ID": self.store.id,
            "PROMPTMILL_LEASE_S": os.environ.get("PROMPTMILL_LEASE_S", str(LEASE_S)),
            # Idle torch threads of one worker must not spin on the cores of another.
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with worker.log.open("ab") as log:
            worker.log_start = log.tell()
            # A session of its own: Ctrl-C in the terminal is the run's to handle, which then stops its workers.
            worker.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        worker.started = time.monotonic()


def _last_words(worker: _Worker) -> str:
    """The last error line that a worker wrote since its start."""
    lines = worker.log.read_bytes()[worker.log_start :].decode(errors="replace").strip().splitlines()
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return lines[-1] if lines else "it said nothing"
