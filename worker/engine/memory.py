"""How much memory a device has left, and how much of it keys and values may take."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import torch

#: Of what is free, the share that keys and values may take. On a CPU the memory is everybody's, and slots are
#: doubled; on an accelerator the rest is for the activations of a step and for fragmentation.
CPU_SHARE, DEVICE_SHARE = 0.4, 0.8

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``."""
    if device.type == "cuda":
        # What torch holds and does not use is free too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = _available()
    limit = _cgroup_left()
    return available if limit is None else min(available, limit)


def free_memory() -> None:
    """Give the devices back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def kv_positions(device: torch.device, bytes_per_token: int, most: int) -> int:
    """Token positions for keys and values that the free memory has room for, at most ``most``, at least one."""
    share = CPU_SHARE if device.type == "cpu" else DEVICE_SHARE
    return max(min(int(free_bytes(device) * share) // bytes_per_token, most), 1)


def _available() -> int:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        # macOS does not tell; half of it all is what others usually leave.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _cgroup_left() -> int | None:
    """What the container's limit leaves; None where there is none."""
    try:
        limit = (_CGROUP / "memory.max").read_text("ascii").strip()
        return None if limit == "max" else int(limit) - int((_CGROUP / "memory.current").read_text("ascii")) + _cached()
    except (OSError, ValueError):
        return None


def _cached() -> int:
    """Of what a container has taken, the files that it has read, such as a model's: they make room when need be."""
    try:
        fields = dict(line.split() for line in (_CGROUP / "memory.stat").read_text("ascii").splitlines())
        return int(fields["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 0
