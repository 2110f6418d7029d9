"""A Redis or Valkey server of a benchmark's own that can be killed, and what it says about itself."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import redis
from bench_errors import BenchError

from producer.server import free_port, server_binary

_START_S = 60.0


class Server:
    """Keeps its data as a local run's does: an append-only file, synced every second.

    ``binary`` is the program to start, by default that of a local run; ``extra`` are more lines of its configuration.
    """

    def __init__(self, folder: Path, binary: str | None = None, *extra: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._binary, self._folder = binary or server_binary(), folder
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        config = ["bind 127.0.0.1", f"port {port}", f'dir "{folder}"', 'save ""', "appendonly yes",
                  "appendfsync everysec", "maxmemory-policy noeviction", *extra]  # fmt: skip
        (folder / "server.conf").write_text("\n".join(config) + "\n")
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.kill()

    def start(self) -> None:
        """Returns when it answers. Raises BenchError."""
        log = self._folder / "server.log"
        with log.open("ab") as output:
            command = [self._binary, str(self._folder / "server.conf")]
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(redis.RedisError):
                self.client.ping()
                return
            time.sleep(0.02)
        raise BenchError(f"the server did not start: {log.read_text(errors='replace').strip()[-300:]}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def version(self) -> str:
        info = self.info("server")
        return f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"

    def info(self, *sections: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.info(*sections)  # type: ignore[assignment]
        return found

    def cpu(self) -> float:
        """Seconds of processor time so far, of all of its threads."""
        info = self.info("cpu")
        return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])

    def script_seconds(self) -> float:
        """Seconds that scripts have run so far, as the server counts them."""
        return float(self.info("commandstats").get("cmdstat_evalsha", {}).get("usec", 0)) / 1e6

    def used_memory(self) -> int:
        return int(self.info("memory")["used_memory"])
