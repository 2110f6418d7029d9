"""The state of all jobs of one store in Redis. Each transition is one Lua script, so each is atomic.

The store is the truth and the ledger its index: what is lost here, ``restore`` brings back from the parts.
Times are those of Redis, in seconds since the epoch.
"""

from __future__ import annotations

from jobs.ledger.leases import Leases
from jobs.ledger.transitions import Transitions
from jobs.ledger.upkeep import Upkeep


class Ledger(Transitions, Leases, Upkeep):
    """One store's jobs, leases and workers. Safe to use from many threads.

    Every method raises RedisUnavailableError where Redis cannot be reached or refuses.
    """
