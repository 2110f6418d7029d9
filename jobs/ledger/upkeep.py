"""What keeps a store's jobs going: sweeps, permits that are missing, and what a restart of Redis asks for."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from itertools import count

from jobs.ledger import keys
from jobs.ledger.model import Sweep, WorkerInfo
from jobs.ledger.replies import text
from jobs.ledger.views import Views

#: Leases and deadlines that one sweep handles at most, so that no script holds Redis up.
SWEEP_LIMIT = 1_000
#: Live jobs that one look for claimable batches takes in: the first few most often have enough.
LOOK = 100
#: Seconds for which one process's recover keeps those of others out. A larger store takes longer: then a second joins
#: it, which merges and does no harm.
RECOVER_LOCK_S = 60
#: Of ``sweep_s``, how long one sweeper keeps the others out: less than 1, or rounds would be missed.
SWEEP_LOCK_RATIO = 0.8


class Upkeep(Views):
    """Sweeps and recoveries, and how much work waits."""

    def sweep(self, owner: str) -> Sweep | None:
        """One round of upkeep: expired leases go back, deadlines fire. None while another's is recent.

        ``permits`` names every model in use and how many permits would get it going again: none where
        a claim was made within ``sweep_s``, else enough for the free slots of its workers (one at least: a
        worker may be about to register), never more than there is work. Queued ones are not subtracted.
        """
        lock_ms = max(int(self.sweep_s * 1000 * SWEEP_LOCK_RATIO), 1)
        reply = self._scripts.run("sweep", owner, lock_ms, SWEEP_LIMIT)
        if reply is None:
            return None
        returned, expired, chains = ([text(item) for item in items] for items in (reply[0], reply[1], reply[3]))
        return Sweep(
            [(job, int(batch)) for job, batch in zip(returned[::2], returned[1::2], strict=True)],
            expired,
            self._permits(float(text(reply[2])), chains),
        )

    def _permits(self, now: float, chains: list[str]) -> dict[str, int]:
        """How many permits each model is short of; ``chains`` is what sweep.lua says of them."""
        due = dict(zip(chains[::3], map(int, chains[1::3]), strict=True))
        claimed = dict(zip(chains[::3], chains[2::3], strict=True))
        stalled = [model for model, last in claimed.items() if not last or now - float(last) >= self.sweep_s]
        workers = self.workers() if stalled else []
        slots = {
            model: max(1, sum(max(w.slots - w.in_hand, 0) for w in workers if w.model == model)) for model in stalled
        }
        batches = self._backlog(slots)
        return {model: min(batches[model] + due[model], slots[model]) if model in slots else 0 for model in due}

    def _backlog(self, wanted: Mapping[str, float]) -> dict[str, int]:
        """Claimable batches of models. Counts no further once it has found as many as are wanted of each."""
        found = dict.fromkeys(wanted, 0)
        for start in count(0, LOOK):
            if all(found[model] >= enough for model, enough in wanted.items()):
                break
            seen, *flat = self._scripts.run_twice("backlog", start, LOOK)
            for model, batches in zip(map(text, flat[::2]), flat[1::2], strict=True):
                if model in found:
                    found[model] += batches
            if seen < LOOK:
                break
        return found

    def claimable(self, model: str, enough: float = math.inf) -> int:
        """Batches of the model that could be claimed now, or a number of them that is ``enough``."""
        return self._backlog({model: enough})[model]

    def has_work(self, worker: WorkerInfo) -> bool:
        """Whether a claim of this worker would find anything now, however many jobs there are."""
        places = [
            key
            for version in map(str, worker.reads)
            for key in (
                self._key("unpinned", version, worker.model),
                self._key("pinned", version, worker.fingerprint, worker.model),
                self._key("due", version, worker.model),
            )
        ]
        return bool(self._command("EXISTS", *places))

    def queue_length(self, queue: str) -> int:
        """Permits that wait in a Celery queue; ``queue`` is the whole name of its Redis list."""
        return int(self._command("LLEN", queue))

    # -- A Redis that forgot.

    def needs_recover(self) -> bool:
        """Whether this Redis may have forgotten jobs: it was flushed, or restarted, and no program that reads all
        versions of jobs that this one reads has ``recovered`` since.

        Raises LayoutError.
        """
        self.check_layout()
        if not self._command("EXISTS", self._key("epoch")):
            return True
        return not self._reads <= self._recovered_versions()

    def begin_recover(self, owner: str) -> bool:
        """Whether ``owner`` is to recover: one does for a whole fleet, and another once RECOVER_LOCK_S are over."""
        lock = self._key("recovering")
        if self._command("SET", lock, owner, "NX", "EX", RECOVER_LOCK_S):
            return True
        holder = self._command("GET", lock)
        return holder is not None and text(holder) == owner

    def recovered(self) -> None:
        """Notes that every job of the store is listed that this program reads."""
        self._command("SET", keys.layout(self.store_id), keys.LAYOUT, "NX")
        versions = ",".join(sorted(self._reads | self._recovered_versions()))
        self._command("SET", self._key("run_id"), f"{self._run_id()} {versions}")
        self._command("SET", self._key("epoch"), secrets.token_hex(8), "NX")
        self._command("DEL", self._key("recovering"))

    def _recovered_versions(self) -> set[str]:
        """The versions of jobs that are listed since this run of the server began."""
        recorded = self._command("GET", self._key("run_id"))
        run_id, _, versions = text(recorded or "").partition(" ")
        return set(versions.split(",")) if run_id == self._run_id() else set()

    def _run_id(self) -> str:
        return text(self._command("INFO", "server")["run_id"])
