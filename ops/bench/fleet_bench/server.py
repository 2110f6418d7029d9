"""A Redis or Valkey server of the benchmark's own that can be killed, and what it says about itself."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import redis
from pipeline_bench.records import BenchError

from producer.server import server_binary

_START_S = 60.0


class Server:
    """Keeps its data as a local run's does: an append-only file, synced every second."""

    def __init__(self, folder: Path, binary: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._binary, self._folder = binary or server_binary(), folder
        port = _free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        (folder / "server.conf").write_text(
            f'bind 127.0.0.1\nport {port}\ndir "{folder}"\nsave ""\nappendonly yes\nappendfsync everysec\n'
            "maxmemory-policy noeviction\nmaxclients 20000\n"
        )
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.kill()

    def start(self) -> None:
        """Returns when it answers. Raises BenchError."""
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([self._binary, str(self._folder / "server.conf")], stdout=log, stderr=log)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(redis.RedisError):
                self.client.ping()
                return
            time.sleep(0.02)
        raise BenchError(f"the server did not start: {(self._folder / 'server.log').read_text()[-300:]}")

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

    def begin(self) -> float:
        """The start of a window: counters at zero, and the processor time so far."""
        self.client.config_resetstat()
        return self.cpu()

    def end(self, cpu: float, seconds: float) -> dict[str, Any]:
        """What the server did and holds at the end of a window; ``redis_cpu`` 1.0 is one core."""
        spent = self.cpu() - cpu
        stats, clients, memory = self.info("stats"), self.info("clients"), self.info("memory")
        evalsha = str(self.info("latencystats").get("latency_percentiles_usec_evalsha", ""))
        commands = {
            name.removeprefix("cmdstat_"): [found["calls"], round(found["usec"] / 1e6 / seconds, 4)]
            for name, found in self.info("commandstats").items() if found["usec"] / 1e6 / seconds > 0.001
        }  # fmt: skip
        return {
            "redis_cpu": round(spent / seconds, 4),
            "kb_in_per_s": round(stats["total_net_input_bytes"] / seconds / 1000, 1),
            "kb_out_per_s": round(stats["total_net_output_bytes"] / seconds / 1000, 1),
            "connections": clients["connected_clients"],
            "memory_mb": round(memory["used_memory"] / 1e6, 1),
            "script_us": evalsha,
            "commands": commands,
        }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
