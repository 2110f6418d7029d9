"""What one worker process holds, built once at start and handed to every task."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from jobs.errors import ForeignStoreError, LayoutError, LeaseLostError, StoreUnavailableError, UnavailableError
from jobs.ledger import LeaseState, Ledger, WorkerInfo
from jobs.permits import Permits
from jobs.settings import Settings
from jobs.store import Store
from worker.engine.request import Engine
from worker.leases import HeldLease, Leases
from worker.models import PromptTokenizer
from worker.notify import Notifier
from worker.pace import Pace

_log = logging.getLogger(__name__)

#: Seconds between two looks at the store's disk while it has room, and between two words about it while it has none.
_DISK_LOOK_S, _DISK_WORD_S = 1.0, 60.0

#: Seconds that a slot waits at most before it claims again after a claim that came to nothing.
MAX_BACK_OFF_S = 30.0


class ThreadCount:
    """How many threads are within ``with count:`` at this moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.threads = 0

    def __enter__(self) -> None:
        with self._lock:
            self.threads += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.threads -= 1


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
    #: To whoever supervises this one.
    notifier: Notifier = field(default_factory=Notifier)
    #: The weights that jobs are pinned to, by job, as far as they were looked up.
    pins: dict[str, str] = field(default_factory=dict)
    leases: Leases = field(default_factory=Leases)
    pace: Pace = field(default_factory=Pace)
    #: Set by SIGTERM: no more claims.
    draining: threading.Event = field(default_factory=threading.Event)
    #: Set when the grace period is over: what runs is handed back.
    abandoned: threading.Event = field(default_factory=threading.Event)
    #: Why the process has to end: workers of a later release have taken over, or another store is in its place.
    outdated: LayoutError | ForeignStoreError | None = None
    _admission: threading.Lock = field(default_factory=threading.Lock)
    _count: threading.Lock = field(default_factory=threading.Lock)
    _waiting: ThreadCount = field(default_factory=ThreadCount)
    #: Commits that wait for the store: meanwhile this process claims nothing more.
    waiting_to_commit: ThreadCount = field(default_factory=ThreadCount)
    #: Claims in a row that came to nothing.
    _setbacks: int = 0
    _store_has_room: bool = True
    _disk_looked_at: float = 0.0
    _disk_told_at: float = 0.0

    @property
    def model(self) -> str:
        return self.registration.model

    def info(self, rows_per_s: float = 0.0, tokens_per_s: float = 0.0) -> WorkerInfo:
        """The registration with this moment's figures."""
        shown = self.pace.shown(self.engine.limits.max_length)
        return replace(
            self.registration,
            in_hand=len(self.leases),
            rows_per_s=rows_per_s,
            tokens_per_s=tokens_per_s,
            shown=shown,
        )

    @contextmanager
    def admission(self, poll_s: float = 0.05) -> Iterator[bool]:
        """Wait until the engine has room for a batch more; False if the process is draining by then.

        Room is fewer than twice its rows in hand: enough that it never runs dry, few enough that a crash
        costs little and that a job which enters is not far behind. One thread at a time is in here, until its
        rows are in hand: of many that waited, only one may take the room.
        """
        with self._waiting, self._admission:
            while not self.draining.is_set() and not (self.has_room and self.store_has_room()):
                time.sleep(poll_s)
            yield not self.draining.is_set()

    def store_has_room(self) -> bool:
        """Whether what is generated now could be kept: no commit waits for the store, and its disk is not full."""
        if self.waiting_to_commit.threads:
            return False
        now = time.monotonic()
        if now - self._disk_looked_at >= _DISK_LOOK_S:
            self._disk_looked_at = now
            self._store_has_room = self._look_at_disk(now)
        return self._store_has_room

    def _look_at_disk(self, now: float) -> bool:
        try:
            free, least = self.store.free_bytes(), self.settings.min_free_mb * 2**20
        except StoreUnavailableError:
            return True  # the claim will find out, and say so
        if free is None or free >= least:
            return True
        if now - self._disk_told_at >= _DISK_WORD_S:
            self._disk_told_at = now
            _log.warning(
                "no more claims: the disk of %s has %.0f MiB free, fewer than PROMPTMILL_MIN_FREE_MB=%g",
                self.store.uri, free / 2**20, self.settings.min_free_mb,
            )  # fmt: skip
        return False

    def require_lease(self, lease: HeldLease) -> None:
        """Raises LeaseLostError where the work on it is to be dropped: it was lost, or the grace period is over."""
        if lease.state is LeaseState.LOST or self.abandoned.is_set():
            raise LeaseLostError

    def back_off(self) -> None:
        """Wait before the next claim, the longer the more of them came to nothing, with full jitter.

        What was handed back can be claimed again at once: while a store is down that would be a busy loop.
        """
        with self._count:
            self._setbacks += 1
            longest = min(2.0 ** min(self._setbacks, 10), MAX_BACK_OFF_S)
        self.draining.wait(random.uniform(0.0, longest))

    def went_well(self) -> None:
        """A claim came to something: the next setback is the first."""
        self._setbacks = 0

    @property
    def has_room(self) -> bool:
        return self.engine.rows_in_hand < 2 * self.engine.limits.max_rows

    @property
    def permit_waits(self) -> bool:
        """Whether a permit for this model is in the queue, for the next slot that is free, here or elsewhere."""
        return self.ledger.queue_length(self.permits.queue_key(self.model)) > 0

    def send_permit(self, count: int = 1) -> None:
        """See to it that other slots go on, here or elsewhere. Where that fails, upkeep does it."""
        try:
            if not self.permit_waits:
                self.permits.send(self.model, count)
        except UnavailableError as error:
            _log.warning("a permit could not be sent: %s", error)

    @property
    def waiting(self) -> int:
        """Threads that have a permit and wait for room."""
        return self._waiting.threads
