"""The only code that touches Redis job state. Its transitions are the Lua scripts beside this file."""

from __future__ import annotations

from jobs.ledger.ledger import Ledger
from jobs.ledger.model import (
    BATCH,
    FINALIZE,
    Beat,
    Claim,
    Finished,
    JobState,
    LeaseState,
    Release,
    Shown,
    Sweep,
    WorkerInfo,
)

__all__ = [
    "BATCH",
    "FINALIZE",
    "Beat",
    "Claim",
    "Finished",
    "JobState",
    "LeaseState",
    "Ledger",
    "Release",
    "Shown",
    "Sweep",
    "WorkerInfo",
]
