"""Upkeep: what nobody is waiting for, yet must happen. Safe to run in many places at once.

Expired leases go back, stalled permit chains restart, deadlines fire, and a ledger that forgot its jobs (or was
never told of one) learns them from the store.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from jobs.deletion import clear_if_deleted
from jobs.errors import JobVersionError, PromptmillError, UnavailableError
from jobs.ledger import Ledger, Sweep
from jobs.permits import Permits
from jobs.records import has_ended, job_ids, note_expired
from jobs.recover import recover_if_needed, recover_job
from jobs.spec import now
from jobs.stages import clean_up
from jobs.store import Store
from jobs.telemetry.counters import Reason, recoveries

_log = logging.getLogger(__name__)

#: Seconds between two looks for accepted jobs that the ledger was not told of.
ADOPT_INTERVAL_S = 30.0
#: Seconds between two looks for what killed processes left behind. It lists the whole store: the first is not at once.
CLEANUP_INTERVAL_S = 86_400.0


@dataclass(slots=True)
class Reconciler:
    """One process's upkeep. ``owner`` names it in the sweep lock."""

    store: Store
    ledger: Ledger
    permits: Permits
    owner: str
    _ended: set[str] = field(default_factory=set)
    _next_adoption: float = 0.0
    _next_cleanup: float = field(default_factory=lambda: time.monotonic() + CLEANUP_INTERVAL_S)

    def run_once(self) -> Sweep | None:
        """One round; None if another process is sweeping, or recovering. Raises UnavailableError."""
        if not self._recover():
            return None
        sweep = self.ledger.sweep(self.owner)
        if sweep is None:
            return None
        for job, batch in sweep.returned:
            recoveries.count(Reason.LEASE_EXPIRED)
            _log.warning(
                "job %s: the lease of batch %d expired, the batch goes back",
                job,
                batch,
                extra={"job": job, "batch": batch},
            )
        for job in sweep.expired:
            _log.warning("job %s: its deadline has passed", job, extra={"job": job})
            note_expired(self.store, job)
        self._adopt()
        self._clean_up()
        self._restart_chains(sweep)
        return sweep

    def _recover(self) -> bool:
        """False while another process recovers: a fleet that did so at once would list the store a thousand times."""
        if self.ledger.needs_recover():
            if not self.ledger.begin_recover(self.owner):
                return False
            recover_if_needed(self.store, self.ledger)
        return True

    def _restart_chains(self, sweep: Sweep) -> None:
        for model, missing in sweep.permits.items():
            count = missing and missing - self.ledger.queue_length(self.permits.queue_key(model))
            if count > 0:
                _log.debug("model %s: %d permits sent to a stalled queue", model, count)
                self.permits.send(model, count)

    def _clean_up(self) -> None:
        if time.monotonic() >= self._next_cleanup:
            self._next_cleanup = time.monotonic() + CLEANUP_INTERVAL_S
            clean_up(self.store, now())

    def _adopt(self) -> None:
        """Tell the ledger of jobs whose producer died between accepting them and telling it."""
        if time.monotonic() < self._next_adoption:
            return
        self._next_adoption = time.monotonic() + ADOPT_INTERVAL_S
        known = set(self.ledger.job_ids())
        stored = set(job_ids(self.store))
        for job in known - stored:
            # Whoever deleted it died before the ledger was told, or Redis has lost that again.
            clear_if_deleted(self.store, job, self.ledger.forget)
        for job in sorted(stored - known):
            if job in self._ended:
                continue
            try:
                if has_ended(self.store, job) or not recover_job(self.store, self.ledger, job):
                    self._ended.add(job)
                else:
                    recoveries.count(Reason.JOB_RESTORED)
                    _log.warning("job %s was accepted but unknown to the ledger: restored", job, extra={"job": job})
            except JobVersionError:
                self._ended.add(job)  # those who read it adopt it
            except UnavailableError:
                raise
            except PromptmillError as error:
                self._ended.add(job)
                _log.error("job %s is left alone: %s", job, error, extra={"job": job})
