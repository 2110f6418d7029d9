"""The whole pipeline for tests: a store, real processes that work on it, and what is there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from jobs import layout
from jobs.job_file import JobFile
from jobs.ledger import Ledger
from jobs.permits import queue_key
from jobs.settings import Settings
from jobs.store import Store
from producer.connection import Connection
from tests import gate
from tests.files import files_below
from tests.forkserver import ONCE
from tests.machines import Host
from tests.outcome import Outcome, call, promptmill
from tests.patience import PATIENCE_S, wait_until
from tests.processes import Command, Process, Worker
from tests.redis_users import as_user

#: Seconds. Short, so that a test sees a lease expire; long enough for a busy machine's heartbeats.
LEASE_S, SWEEP_S = 4.0, 0.5
#: For the workers of tests in which each batch runs once: on a machine that stands still for a while, LEASE_S may pass
#: between two heartbeats.
LONG_LEASE = {"PROMPTMILL_LEASE_S": "600"}
#: How long the workers that a test kills sit on a batch decides nothing: rows in hand are few on purpose.
WORKER_FLAGS = ("--device", "cpu", "--threads", "1", "--concurrency", "2", "--max-rows", "16", "--grace", "10")


@dataclass
class Mill:
    """A store, a server, and the processes that work on them. Close it, and they are gone."""

    folder: Path
    #: Empty: none is named, and ``promptmill run`` brings its own server.
    redis_url: str
    #: Of a store that is no folder.
    store_uri: str | None = None
    processes: list[Process] = field(default_factory=list)
    _logs: int = 0

    @property
    def store_path(self) -> Path:
        return self.folder / "store"

    @property
    def _store(self) -> str:
        return self.store_uri or str(self.store_path)

    @property
    def environment(self) -> dict[str, str]:
        """What commands see; workers have a user of their own."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("PROMPTMILL_")}
        if self.redis_url:
            own["PROMPTMILL_REDIS_URL"] = self.redis_url
        return {**own, "PROMPTMILL_STORE": self._store, "PROMPTMILL_LEASE_S": str(LEASE_S),
                "PROMPTMILL_SWEEP_S": str(SWEEP_S), **ONCE}  # fmt: skip

    # -- Commands.

    def run(
        self,
        *arguments: str,
        stdin: bytes | None = None,
        timeout_s: float = PATIENCE_S,
        host: Host | None = None,
        **env: str,
    ) -> Outcome:
        """``promptmill ARGUMENTS`` as a process of its own."""
        done = subprocess.run(
            promptmill(*arguments), input=stdin if stdin is not None else b"", capture_output=True,
            env={**self.environment, **env}, timeout=timeout_s, cwd=self.folder, check=False,
            preexec_fn=host.enter if host else None,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    def call(self, *arguments: str, stdin: bytes = b"", **env: str) -> Outcome:
        """``promptmill ARGUMENTS`` within this process: the same code, without the second that a start takes."""
        return call(arguments, {**self.environment, **env}, self.folder, stdin)

    def start(self, *arguments: str, name: str = "command", stdin: int = subprocess.DEVNULL, **env: str) -> Command:
        """``promptmill ARGUMENTS`` in the background."""
        return self._start(promptmill(*arguments, plugin=env.get("PLUGIN")), name, stdin=stdin, **env)

    def worker(self, model: str, folder: Path, *flags: str, host: Host | None = None, **env: str) -> Worker:
        """A worker process that serves ``folder`` as ``model``; it may still be loading."""
        return self._fork(model, folder, flags, self._worker_environment(env), host)

    def _fork(
        self, model: str, folder: Path, flags: Sequence[str], environment: dict[str, str], host: Host | None = None
    ) -> Worker:
        own = ("--model", f"{model}={folder}", *WORKER_FLAGS)
        environment = {**environment, gate.VARIABLE: str(self.gate)}
        worker = Worker([*own, *flags], environment, self.folder, self._next_log("worker"), host)
        self.processes.append(worker)
        return worker

    @property
    def gate(self) -> Path:
        return self.folder / "gate"

    def held(self, batch: int) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Meanwhile the workers commit no batch with this number or a higher one: no job of more can end.

        What is yielded has them go on to another number.
        """
        return gate.shut(self.gate, batch)

    @contextlib.contextmanager
    def supervised(self, model: str, folder: Path, *flags: str, **env: str) -> Iterator[list[Worker]]:
        """A worker that is started anew whenever it has ended; all that there were, the live one last."""
        # Now: commands that are called within this process change its environment.
        environment = self._worker_environment(env)
        started, over = [self._fork(model, folder, flags, environment)], threading.Event()

        def supervise() -> None:
            while not over.wait(0.1):
                if not started[-1].alive:
                    started.append(self._fork(model, folder, flags, environment))

        supervisor = threading.Thread(target=supervise)
        supervisor.start()
        try:
            self.wait_for_workers(started[:1])
            yield started
        finally:
            over.set()
            supervisor.join()
            started[-1].close()

    def start_worker(self, *flags: str, **env: str) -> Command:
        """``promptmill-worker start FLAGS`` in the background, as users start it."""
        command = [sys.executable, "-m", "worker", "start", *flags]
        return self._start(command, "worker", **self._worker_environment(env))

    def _worker_environment(self, env: dict[str, str]) -> dict[str, str]:
        own = {**self.environment, **env}
        return {**own, "PROMPTMILL_REDIS_URL": as_user(own.get("PROMPTMILL_REDIS_URL", ""), "worker")}

    def workers(self, model: str, folder: Path, count: int) -> list[Worker]:
        """As many live workers, ready to claim."""
        started = [self.worker(model, folder) for _ in range(count)]
        self.wait_for_workers(started)
        return started

    def wait_for_workers(self, started: Sequence[Process]) -> None:
        pids = {process.pid for process in started}

        def ready() -> bool:
            for process in started:
                assert process.alive, f"the worker ended with {process.returncode}:\n{process.said()}"
            with self.ledger() as ledger:
                return pids <= {worker.pid for worker in ledger.workers()}

        wait_until("the workers to register", ready, every_s=0.2)

    def _start(self, command: Sequence[str], name: str, stdin: int = subprocess.DEVNULL, **env: str) -> Command:
        environment = {**self.environment, **env}
        process = Command(command, environment, self._next_log(name), stdin=stdin, cwd=self.folder)
        self.processes.append(process)
        return process

    def _next_log(self, name: str) -> Path:
        self._logs += 1
        return self.folder / f"{name}-{self._logs}.log"

    # -- Sources.

    def write(self, name: str, content: str | bytes) -> str:
        """A file beside the store; its path."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def prompts(self, name: str, count: int, **columns: Any) -> str:
        """A JSONL file of ``count`` prompts, numbered, with ids; its path. What the name says, the prompts say."""
        rows = ({"id": f"{name}-{i}", "prompt": f"{name} {i}: the lamp", "number": i, **columns} for i in range(count))
        return self.write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    # -- What is there.

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        settings = Settings.load(store=self._store, redis_url=self.redis_url, lease_s=LEASE_S, sweep_s=SWEEP_S)
        connection = Connection(settings, create=True)
        try:
            yield connection
        finally:
            connection.close()

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        with self.connection() as connection:
            yield connection.ledger

    @contextlib.contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """A client with text replies that may do everything."""
        with redis.Redis.from_url(as_user(self.redis_url, "admin"), decode_responses=True) as client:
            yield client

    @property
    def store(self) -> Store:
        return Store.open(self._store, create=True)

    def status(self, job: str) -> dict[str, Any]:
        """``status --json`` of ``job``."""
        found: dict[str, Any] = self.call("status", job, "--json").ok().json
        return found

    def wait_for(self, job: str, *statuses: str, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """The status of ``job`` once it is one of ``statuses``."""

        def look() -> dict[str, Any] | None:
            status = self.status(job)
            return status if status["status"] in statuses else None

        return wait_until(f"{job} to be {' or '.join(statuses)}", look, timeout_s, every_s=0.1)

    def wait_for_rows(self, job: str, rows: int) -> dict[str, Any]:
        """The status of ``job`` once so many of its rows are committed."""

        def look() -> dict[str, Any] | None:
            status = self.status(job)
            return status if status["rows"]["completed"] >= rows else None

        return wait_until(f"{rows} rows of {job}", look)

    def job_files(self) -> list[str]:
        return sorted(path.name for path in (self.store_path / "jobs").glob("*.json") if path.name.count(".") == 1)

    def stages(self) -> list[str]:
        """The stages that hold a file."""
        return sorted({file.parts[0] for file in files_below(self.store_path / "data")})

    def parts(self) -> list[Path]:
        """The parts of batches that there are: of jobs that have not ended."""
        data = self.store_path / "data"
        return [data / file for file in files_below(data) if file.match("*/parts/part-*.parquet")]

    def queue_length(self, model: str) -> int:
        with self.redis() as client:
            return int(client.llen(queue_key(self.store.id, model)))

    def record(self, job: str) -> JobFile:
        return JobFile.from_bytes(self.store.get(layout.job_file(job)))

    def dataset(self, job: str) -> Path:
        return self.store_path / layout.results_prefix(job)

    def table(self, job: str) -> pa.Table:
        """The rows of an ended job, in the order of its files."""
        files = sorted(self.dataset(job).glob("data-*.parquet"))
        return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])

    def close(self) -> None:
        for process in self.processes:
            process.close()


def rows_in_order(table: pa.Table) -> list[tuple[int, int]]:
    """The key of each row: its row_index and sample_index."""
    return list(zip(table["row_index"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
