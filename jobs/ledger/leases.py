"""Leases: what workers do to batches."""

from __future__ import annotations

import secrets

import orjson

from jobs.errors import InputError, RedisFullError
from jobs.ledger import replies
from jobs.ledger.base import LedgerBase, chunks, unknown_job
from jobs.ledger.model import Beat, Claim, Finished, LeaseState, Release, WorkerInfo
from jobs.ledger.replies import text
from jobs.results import PartCounts


class Leases(LedgerBase):
    """Claims and what becomes of them."""

    def claim(self, worker: WorkerInfo) -> Claim | None:
        """Leases the next piece of work for this worker, by weighted fair share. None if there is none.

        Where Redis has no memory for more work, jobs are still ended: that gives some back.
        """
        token = secrets.token_hex(8)
        # Sent once: were the answer lost and the claim repeated, the first lease would wait for its expiry.
        try:
            reply = self._scripts.run("claim", worker.model, worker.fingerprint, worker.id, token, self.lease_s)
        except RedisFullError:
            if ending := self.claim_finalize(owner=worker.id):
                return ending
            raise
        return replies.claim(reply)

    def claim_finalize(self, job: str | None = None, owner: str = "") -> Claim | None:
        """Leases the finalization of ``job``, or of any job that waits for it. None if none waits."""
        token = secrets.token_hex(8)
        reply = self._scripts.run("claim_finalize", job or "", owner, token, self.lease_s)
        return replies.claim(reply)

    def heartbeat(self, beats: list[Beat], owner: str = "") -> dict[tuple[str, int], LeaseState]:
        """Extends leases, and revives those that expired while nobody took them. By ``(job, batch)``."""
        states: dict[tuple[str, int], LeaseState] = {}
        for chunk in chunks(iter(beats)):
            flat = [item for b in chunk for item in (b.job, b.batch, b.token, b.rows, b.tokens)]
            reply = self._scripts.run_twice("heartbeat", self.lease_s, owner, *flat)
            for beat, state in zip(chunk, reply, strict=True):
                states[beat.job, beat.batch] = LeaseState(text(state))
        return states

    def finish(self, job: str, batch: int, token: str | None, counts: PartCounts) -> Finished:
        """Notes that a batch's part is in the store, once. Accepted from anyone: ``token`` is not compared.

        Raises UnknownJobError where the ledger does not know the job: recover it from the store.
        """
        del token
        reply = self._scripts.run_twice("finish", job, batch, orjson.dumps(counts.generated))
        if reply[0] == -1:
            raise unknown_job(job)
        if reply[0] == -2:
            raise InputError(f"job {job} has no batch {batch}")
        return Finished(first=bool(reply[0]), finalize=bool(reply[1]))

    def release(self, job: str, batch: int, token: str, how: Release = Release.RELEASED) -> None:
        """Gives a lease back unfinished; later claims tell ``how``. Nothing happens if it is not held."""
        self._scripts.run_twice("release", job, batch, token, how)

    def suspect(self, job: str, batch: int, token: str, row: int) -> bool:
        """Notes that a row of a leased batch is about to run alone: should the lease end now, it counts a crash of it.

        False if the lease is not held.
        """
        return bool(self._scripts.run_twice("suspect", job, batch, token, row))
