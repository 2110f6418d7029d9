"""What the benchmark's server did and holds in a window of time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ledger_bench.server import Server


class FleetServer(Server):
    """One that a thousand workers can connect to."""

    def __init__(self, folder: Path, binary: str | None = None) -> None:
        super().__init__(folder, binary, "maxclients 20000")

    def hold(self) -> None:
        """From now on nothing is changed, until it is killed."""
        self.client.client_pause(600_000, all=False)

    @property
    def has_written(self) -> bool:
        """Whether all that it has answered is in its file."""
        return int(self.info("persistence")["aof_buffer_length"]) == 0

    def begin(self) -> float:
        """The start of a window: counters at zero, and the processor time so far."""
        self.client.config_resetstat()
        return self.cpu()

    def end(self, cpu: float, seconds: float) -> dict[str, Any]:
        """What the server did and holds at the end of a window; ``redis_cpu`` 1.0 is one core."""
        spent = self.cpu() - cpu
        stats, clients = self.info("stats"), self.info("clients")
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
            "memory_mb": round(self.used_memory() / 1e6, 1),
            "script_us": evalsha,
            "commands": commands,
        }
