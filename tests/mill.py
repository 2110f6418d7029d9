"""Real processes for tests of the whole pipeline: a Redis server, workers, and the ``promptmill`` command."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pandas  # noqa: F401  # before a command, called within this process, tells Arrow to do without it
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from jobs import layout
from jobs.ledger import Ledger
from jobs.permits import queue_key
from jobs.settings import Settings
from jobs.spec import JobFile
from jobs.store import Store
from producer.cli import main
from producer.connection import Connection
from producer.server import server_binary
from tests import gate
from tests.forkserver import ONCE, fork_worker
from tests.machines import Host
from tests.ports import free_port
from tests.redis_users import as_user, login, users_file

#: Seconds. Short, so that a test sees a lease expire; long enough for a busy machine's heartbeats.
LEASE_S, SWEEP_S = 4.0, 0.5
#: Seconds for anything that is waited for; far more than it takes on a machine that has nothing else to do.
PATIENCE_S = 120.0
#: How long the workers that a test kills sit on a batch decides nothing: rows in hand are few on purpose.
WORKER_FLAGS = ("--device", "cpu", "--threads", "1", "--concurrency", "2", "--max-rows", "16", "--grace", "10")

T = TypeVar("T")


def wait_until(what: str, look: Callable[[], T], timeout_s: float = PATIENCE_S, every_s: float = 0.05) -> T:
    """The first true answer of ``look``. Raises TimeoutError, naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(every_s)
    raise TimeoutError(f"after {timeout_s:g} s still waiting: {what}")


class Server:
    """A Redis server on a port of its own, with an append-only file; it can be killed and started again.

    It has the users of ops/redis, and ``url`` is the producer's, unless it is guarded by one ``password`` instead.

    One that runs on a ``host`` is asked from here through a socket in ``folder``, at ``console``.
    """

    def __init__(self, folder: Path, *extra: str, password: str | None = None, host: Host | None = None) -> None:
        self.folder, self.host = folder, host
        self.port = free_port()
        address = host.address if host else "127.0.0.1"
        who = f":{password}@" if password else login("producer")
        self.url = f"redis://{who}{address}:{self.port}/0"
        self.console = as_user(f"unix://{who}{folder}/socket?db=0" if host else self.url, "admin")
        # "always": what was answered before a kill is there after it.
        self._config = [f"bind {address}", f"port {self.port}", f'dir "{folder}"', 'save ""', "appendonly yes",
                        "appendfsync always", "maxmemory-policy noeviction", *extra]  # fmt: skip
        if host:
            # Its users log in; by default a server whose default user needs no password is for its own machine alone.
            self._config += [f'unixsocket "{folder}/socket"', "protected-mode no"]
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis.from_url(self.console, decode_responses=True, socket_timeout=PATIENCE_S)

    def url_through(self, port: int) -> str:
        """``url`` by way of something that listens on another port."""
        return self.url.replace(f":{self.port}/", f":{port}/")

    def start(self) -> Server:
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "server.conf"
        users = f"requirepass {self._password}" if self._password else f'aclfile "{users_file(self.folder)}"'
        config.write_text("\n".join([*self._config, users]) + "\n")
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [server_binary(), str(config)],
                stdout=log,
                stderr=log,
                preexec_fn=self.host.enter if self.host else None,
            )
        wait_until("the Redis server to answer", self._answers)
        return self

    def kill(self) -> None:
        """As a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """It holds its connections and says nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self.client.close()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "server.log").read_text()
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False


@dataclass
class Outcome:
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    def ok(self) -> Outcome:
        assert self.code == 0, f"exit {self.code}\nstdout: {self.out}\nstderr: {self.err}"
        return self


class Process:
    """A worker, or a command that goes on, in a session of its own; its output is in ``log``."""

    pid: int

    def __init__(self, log: Path) -> None:
        self.log = log
        log.touch()

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None of one that lives."""
        raise NotImplementedError

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
            _promptmill(*arguments), input=stdin if stdin is not None else b"", capture_output=True,
            env={**self.environment, **env}, timeout=timeout_s, cwd=self.folder, check=False,
            preexec_fn=host.enter if host else None,
        )  # fmt: skip
        return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())

    def call(self, *arguments: str, stdin: bytes = b"", **env: str) -> Outcome:
        """``promptmill ARGUMENTS`` within this process: the same code, without the second that a start takes."""
        out, err = _Pipe(b""), _Pipe(b"")
        root = logging.getLogger()
        handlers, level, code = root.handlers[:], root.level, 0
        with (
            patch.dict(os.environ, {**self.environment, **env}, clear=True),
            patch.multiple(sys, argv=["promptmill", *arguments], stdin=_Pipe(stdin), stdout=out, stderr=err),
            contextlib.chdir(self.folder),
        ):
            try:
                main()
            except SystemExit as exit:
                code = exit.code if isinstance(exit.code, int) else 1
            finally:
                root.handlers[:] = handlers
                root.setLevel(level)
        return Outcome(code, out.text(), err.text())

    def start(self, *arguments: str, name: str = "command", stdin: int = subprocess.DEVNULL, **env: str) -> Command:
        """``promptmill ARGUMENTS`` in the background."""
        return self._start(_promptmill(*arguments, plugin=env.get("PLUGIN")), name, stdin=stdin, **env)

    def worker(self, model: str, folder: Path, *flags: str, host: Host | None = None, **env: str) -> Worker:
        """A worker process that serves ``folder`` as ``model``; it may still be loading."""
        return self._fork(model, folder, flags, self._worker_environment(env), host)

    def _fork(
        self, model: str, folder: Path, flags: Sequence[str], environment: dict[str, str], host: Host | None = None
    ) -> Worker:
        own = ("--model", f"{model}={folder}", *WORKER_FLAGS)
        environment = {**environment, gate.VARIABLE: str(self._gate)}
        worker = Worker([*own, *flags], environment, self.folder, self._next_log("worker"), host)
        self.processes.append(worker)
        return worker

    @property
    def _gate(self) -> Path:
        return self.folder / "gate"

    def held(self, batch: int) -> contextlib.AbstractContextManager[None]:
        """Meanwhile the workers commit no batch with this number or a higher one: no job of more can end."""
        return gate.shut(self._gate, batch)

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
        return sorted({path.parts[-3] for path in self.store_path.glob("data/*/*/*") if path.is_file()})

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


class _Pipe(io.TextIOWrapper):
    """What a command sees as stdin, stdout or stderr; no terminal."""

    def __init__(self, content: bytes) -> None:
        self._bytes = io.BytesIO(content)
        super().__init__(self._bytes, encoding="utf-8", write_through=True)

    def text(self) -> str:
        return self._bytes.getvalue().decode()


def _promptmill(*arguments: str, plugin: str | None = None) -> list[str]:
    """The installed command, by the interpreter that runs the tests."""
    first = f"import {plugin}; {plugin}.install(); " if plugin else ""
    return [sys.executable, "-c", f"{first}from producer.cli import main; main()", *arguments]
