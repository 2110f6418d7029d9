"""A Redis or Valkey server of the benchmark's own, and what it says about itself."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from producer.server import server_binary

_START_S = 30.0


class BenchError(Exception):
    """Raised when the benchmark cannot do what it was asked for; the message is for the user."""


@dataclass(frozen=True)
class Server:
    """A running server: its URL, a client with text replies, and its name and version."""

    url: str
    client: redis.Redis
    version: str

    def cpu(self) -> float:
        """Seconds of processor time that the server has used so far, all of its threads."""
        info: dict[str, Any] = self.client.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def script_seconds(self) -> float:
        """Seconds that scripts have run so far, as the server counts them."""
        stats: dict[str, Any] = self.client.info("commandstats")
        return float(stats.get("cmdstat_evalsha", {}).get("usec", 0)) / 1e6

    def used_memory(self) -> int:
        info: dict[str, Any] = self.client.info("memory")
        return int(info["used_memory"])


@contextmanager
def serving(binary: str | None) -> Iterator[Server]:
    """A server on a free port that keeps its data as a local run's does. Raises BenchError."""
    with tempfile.TemporaryDirectory(prefix="promptmill-bench-") as folder:
        port, config, log = _free_port(), Path(folder, "server.conf"), Path(folder, "server.log")
        config.write_text(
            f'bind 127.0.0.1\nport {port}\ndir "{folder}"\nsave ""\nappendonly yes\nappendfsync everysec\n'
            "maxmemory-policy noeviction\n"
        )
        with log.open("wb") as output:
            process = subprocess.Popen([binary or server_binary(), str(config)], stdout=output, stderr=output)
        url = f"redis://127.0.0.1:{port}/0"
        client = redis.Redis.from_url(url, decode_responses=True)
        try:
            yield Server(url, client, _version(client, process, log))
        finally:
            client.close()
            process.kill()
            process.wait()


def _version(client: redis.Redis, process: subprocess.Popen[bytes], log: Path) -> str:
    """The server's name and version, once it answers."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            info: dict[str, Any] = client.info("server")
        except redis.RedisError:
            time.sleep(0.05)
        else:
            return f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"
    raise BenchError(f"the server did not start: {log.read_text(errors='replace').strip()[-300:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
