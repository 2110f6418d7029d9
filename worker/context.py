"""What one worker process holds, built once at start and handed to every task."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from jobs.ledger import Ledger, WorkerInfo
from jobs.permits import Permits
from jobs.settings import Settings
from jobs.store import Store
from worker.engine.request import Engine
from worker.heartbeat import Leases
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
    leases: Leases = field(default_factory=Leases)
    #: Set by SIGTERM: no more claims.
    draining: threading.Event = field(default_factory=threading.Event)
    #: Set when the grace period is over: what runs is handed back.
    abandoned: threading.Event = field(default_factory=threading.Event)

    @property
    def model(self) -> str:
        return self.registration.model

    def info(self, rows_per_s: float = 0.0, tokens_per_s: float = 0.0) -> WorkerInfo:
        """The registration with this moment's figures."""
        return replace(self.registration, in_hand=len(self.leases), rows_per_s=rows_per_s, tokens_per_s=tokens_per_s)

    def wait_for_room(self, poll_s: float = 0.05) -> bool:
        """Wait until the engine has room for a batch more; False if the process is draining by then.

        Room is fewer than twice its rows in hand: enough that it never runs dry, few enough that a crash
        costs little and that a job which enters is not far behind.
        """
        while not self.draining.is_set():
            if self.engine.rows_in_hand < 2 * self.engine.limits.max_rows:
                return True
            time.sleep(poll_s)
        return False
