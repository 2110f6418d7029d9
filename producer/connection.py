"""A producer's way to its store, ledger and permits, opened when first needed."""

from __future__ import annotations

import logging
import os
import socket
from functools import cached_property
from typing import TYPE_CHECKING

from jobs.errors import RedisUnavailableError
from jobs.ledger import Ledger
from jobs.settings import Settings
from jobs.store import Store

if TYPE_CHECKING:
    from jobs.permits import Permits
    from jobs.reconcile import Reconciler

_log = logging.getLogger(__name__)


class Connection:
    """Opens the store at once and Redis on first use, so that what needs no Redis works without one.

    With ``create`` an absent store is founded, unless the settings say which one has to be there. Raises
    StoreUnavailableError and, on first use of the ledger, RedisUnavailableError.
    """

    def __init__(self, settings: Settings, *, create: bool = False) -> None:
        self.settings = settings
        self.store = Store.open(settings.store, create=create, wanted=settings.store_id)

    @cached_property
    def ledger(self) -> Ledger:
        settings = self.settings
        ledger = Ledger.connect(settings.redis, self.store.id, lease_s=settings.lease_s, sweep_s=settings.sweep_s)
        ledger.register_store(self.store.uri)
        return ledger

    @property
    def has_ledger(self) -> bool:
        """Whether Redis was reached already."""
        return "ledger" in self.__dict__

    @cached_property
    def permits(self) -> Permits:
        # Imported late: Celery takes longer to import than commands that send no permit take to run.
        from jobs.permits import Permits, make_app

        return Permits(make_app(self.settings.redis, self.store.id), self.store.id)

    @cached_property
    def reconciler(self) -> Reconciler:
        from jobs.reconcile import Reconciler

        owner = f"producer-{socket.gethostname()}-{os.getpid()}"
        return Reconciler(self.store, self.ledger, self.permits, owner)

    def check_broker(self) -> None:
        """Raises InputError for a Redis URL that Celery cannot use: before anything is accepted, not after."""
        _ = self.permits

    def send_first_permits(self, model: str) -> None:
        """Start the model's chain: a permit for each free slot, at least one, never more than there are batches.

        Where that fails, the next upkeep starts it.
        """
        try:
            free = sum(
                max(0, worker.slots - worker.in_hand) for worker in self.ledger.workers() if worker.model == model
            )
            self.permits.send(model, max(1, min(free, self.ledger.claimable(model, free))))
        except RedisUnavailableError as error:
            _log.warning("workers of %s will hear of it later: %s", model, error)

    def close(self) -> None:
        for name in ("ledger", "permits"):
            if name in self.__dict__:
                getattr(self, name).close()
