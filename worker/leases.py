"""The leases that a worker process holds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from jobs.ledger import Claim, LeaseState
from worker.engine.request import Request


@dataclass(slots=True, eq=False)
class HeldLease:
    """One lease in hand; ``state`` is the last answer of the ledger."""

    claim: Claim
    requests: list[Request] = field(default_factory=list)
    rows_done: int = 0
    tokens: int = 0
    state: LeaseState = LeaseState.HELD

    def drop(self, state: LeaseState) -> None:
        """The ledger says that the rows need not go on."""
        self.state = state
        for request in self.requests:
            request.cancelled = True


class Leases:
    """The leases of one process. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[tuple[str, int], HeldLease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[HeldLease]:
        with self._lock:
            return iter(list(self._held.values()))

    def hold(self, claim: Claim) -> HeldLease:
        lease = HeldLease(claim)
        with self._lock:
            self._held[claim.job, claim.batch] = lease
        return lease

    def let_go(self, lease: HeldLease) -> None:
        with self._lock:
            if self._held.get((lease.claim.job, lease.claim.batch)) is lease:
                del self._held[lease.claim.job, lease.claim.batch]
