"""What one worker process holds, built once at start and handed to every task."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from jobs.ledger import Ledger, WorkerInfo
from jobs.permits import Permits
from jobs.settings import Settings
from jobs.store import Store
from worker.engine.request import Engine
from worker.leases import Leases
from worker.models import PromptTokenizer


@dataclass(slots=True)
class WorkerContext:
    """The process's one engine, its connections, and the leases that it holds."""

    settings: Settings
    store: Store
    ledger: Ledger
    permits: Permits
    engine: Engine
    tokenizer: PromptTokenizer
    registration: WorkerInfo
    #: The process to end with, if any.
    parent_pid: int | None = None
    #: The weights that jobs are pinned to, by job, as far as they were looked up.
    pins: dict[str, str] = field(default_factory=dict)
    leases: Leases = field(default_factory=Leases)
    #: Set by SIGTERM: no more claims.
    draining: threading.Event = field(default_factory=threading.Event)
    #: Set when the grace period is over: what runs is handed back.
    abandoned: threading.Event = field(default_factory=threading.Event)
    _admission: threading.Lock = field(default_factory=threading.Lock)
    _count: threading.Lock = field(default_factory=threading.Lock)
    _waiting: int = 0

    @property
    def model(self) -> str:
        return self.registration.model

    def info(self, rows_per_s: float = 0.0, tokens_per_s: float = 0.0) -> WorkerInfo:
        """The registration with this moment's figures."""
        return replace(self.registration, in_hand=len(self.leases), rows_per_s=rows_per_s, tokens_per_s=tokens_per_s)

    @contextmanager
    def admission(self, poll_s: float = 0.05) -> Iterator[bool]:
        """Wait until the engine has room for a batch more; False if the process is draining by then.

        Room is fewer than twice its rows in hand: enough that it never runs dry, few enough that a crash
        costs little and that a job which enters is not far behind. One thread at a time is in here, until its
        rows are in hand: of many that waited, only one may take the room.
        """
        with self._counting_waiter(), self._admission:
            while not self.draining.is_set() and not self.has_room:
                time.sleep(poll_s)
            yield not self.draining.is_set()

    @property
    def has_room(self) -> bool:
        return self.engine.rows_in_hand < 2 * self.engine.limits.max_rows

    @property
    def permit_waits(self) -> bool:
        """Whether a permit for this model is in the queue, for the next slot that is free, here or elsewhere."""
        return self.ledger.queue_length(self.permits.queue_key(self.model)) > 0

    @property
    def waiting(self) -> int:
        """Threads that have a permit and wait for room."""
        return self._waiting

    @contextmanager
    def _counting_waiter(self) -> Iterator[None]:
        with self._count:
            self._waiting += 1
        try:
            yield
        finally:
            with self._count:
                self._waiting -= 1
