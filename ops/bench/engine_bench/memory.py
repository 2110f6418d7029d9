"""Peak memory of one contender in a process of its own."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from engine_bench.contenders import CONTENDERS, Case, check_lengths
from engine_bench.models import model_shape
from engine_bench.records import Work


@dataclass(frozen=True)
class Alone:
    """What the process is told."""

    folder: str
    work: Work
    contender: str
    rows: int


def measure_alone(alone: Alone) -> dict[str, float]:
    """One pass, in this process, which has done nothing else; the fields of ``records.Memory``."""
    contender = CONTENDERS[alone.contender]
    for name in (*contender.needs, contender.opener.partition(":")[0]):
        import_module(name)
    idle = peak_mb()
    made = alone.work.again()
    requests = made.requests(model_shape(alone.work.model).vocabulary, round_=0)
    case = Case(Path(alone.folder), requests, alone.rows, alone.work.threads, made.shared_prefix)
    with contender.open(case) as runner:
        check_lengths(requests, runner.run())
    return {"peak_mb": peak_mb(), "idle_mb": idle}


def peak_mb() -> float:
    """The most memory that this process has held so far, in MB of 10^6 bytes.

    Linux hands ru_maxrss of the parent down to a child, so that a small process of a large parent seems large;
    VmHWM is the process' own. ru_maxrss is in bytes on macOS.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
    high_water = next(line for line in lines if line.startswith("VmHWM:"))
    return round(int(high_water.split()[1]) * 1024 / 1e6, 1)
