"""A Redis server for tests that can be killed, held and started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from pathlib import Path

import redis

from producer.server import server_binary
from tests.machines import Host
from tests.patience import PATIENCE_S, wait_until
from tests.ports import free_port
from tests.redis_users import as_user, login, users_file


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
