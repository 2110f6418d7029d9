"""What a supervisor is to keep alive. It is handed over as text: the supervisor is a program of its own.

The command line knows typer and pydantic; a supervisor that lives for months does not need their memory.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NoReturn

from jobs.errors import InputError
from worker.devices import Device

_HIGHEST_PORT = 65535


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """One process: its flags after those of all, and what it has in its environment beside what the parent has."""

    name: str
    flags: list[str]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The processes of one machine."""

    #: The command of a worker, without the flags of its device.
    command: list[str]
    children: list[ChildPlan]
    #: What SIGTERM gives each of them, and after that until it is killed.
    grace_s: float
    kill_after_s: float = 20.0
    log_level: str = "info"
    log_format: str = "text"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        content = json.loads(text)
        return cls(**{**content, "children": [ChildPlan(**child) for child in content["children"]]})


def plan_children(
    devices: Sequence[Device],
    environment: Mapping[str, str],
    *,
    cores: int,
    threads: int | None = None,
    metrics_port: int | None = None,
) -> list[ChildPlan]:
    """A process for each of ``devices``; they share the cores, unless ``threads`` or OMP_NUM_THREADS says otherwise.

    The n-th serves metrics on ``metrics_port`` + n. Raises InputError where there is no such port.
    """
    if metrics_port is not None and metrics_port + len(devices) - 1 > _HIGHEST_PORT:
        raise InputError(f"--metrics-port {metrics_port}: with {len(devices)} devices the last port would be too high")
    own = {}
    if threads is None and "OMP_NUM_THREADS" not in environment:
        threads = max(1, cores // len(devices))
        own["OMP_NUM_THREADS"] = str(threads)
    # Idle threads of one process must not spin on the cores of another.
    own.setdefault("OMP_WAIT_POLICY", environment.get("OMP_WAIT_POLICY", "PASSIVE"))
    if "CUDA_VISIBLE_DEVICES" not in environment:
        # So that numbers are those of nvidia-smi also where GPUs differ.
        own["CUDA_DEVICE_ORDER"] = environment.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    return [
        ChildPlan(
            device.name,
            ["--device", device.flag]
            + (["--threads", str(threads)] if threads is not None else [])
            + (["--metrics-port", str(metrics_port + number)] if metrics_port is not None else []),
            {**own, "CUDA_VISIBLE_DEVICES": device.visible},
        )
        for number, device in enumerate(devices)
    ]


def become_supervisor(plan: Plan) -> NoReturn:
    """Replace this process, under its id, by a supervisor."""
    # -P: what lies in the current folder is not imported.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "worker.supervisor", plan.to_json()])
