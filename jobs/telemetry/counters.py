"""What a process had to recover from, counted where it happens and served by whoever serves metrics."""

from __future__ import annotations

import threading
from collections import Counter
from enum import StrEnum


class Reason(StrEnum):
    """The reasons of ``promptmill_recoveries_total``. docs/monitoring.md says what each means."""

    #: A lease expired, and its batch went back: its worker died, or could not be heard for a lease.
    LEASE_EXPIRED = "lease_expired"
    #: A worker learned that a batch it had in hand belongs to another by now.
    LEASE_LOST = "lease_lost"
    #: A batch was claimed again after a run that came to no end.
    BATCH_RETRIED = "batch_retried"
    #: A ledger that had forgotten its jobs was told of them from the store.
    LEDGER_RESTORED = "ledger_restored"
    #: A single job that the ledger did not know was told to it from the store.
    JOB_RESTORED = "job_restored"
    #: A part that cannot be read was set aside.
    PART_DAMAGED = "part_damaged"
    #: A finished batch whose part is gone or damaged is generated again.
    PART_LOST = "part_lost"
    #: Redis answered again after an outage.
    REDIS_RECONNECTED = "redis_reconnected"
    #: The store took a part, or answered, again after an outage.
    STORE_RECONNECTED = "store_reconnected"


class Recoveries:
    """Counts by reason since the process started. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Reason] = Counter()

    def count(self, reason: Reason, times: int = 1) -> None:
        with self._lock:
            self._counts[reason] += times

    def counts(self) -> dict[Reason, int]:
        """Every reason, those that never came too: a rate needs to know where it started."""
        with self._lock:
            return {reason: self._counts[reason] for reason in Reason}


#: Those of this process.
recoveries = Recoveries()
