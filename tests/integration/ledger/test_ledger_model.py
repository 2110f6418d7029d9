"""The ledger against a plain model of it: whatever happens in whatever order, both must agree."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_work import job_file, let_leases_expire, worker

from jobs.errors import InputError
from jobs.ledger import Beat, Claim, Ledger, Release, keys
from jobs.results import PartCounts
from jobs.spec import Status

JOBS = ("a", "b", "c")
MAX_BATCHES = 5


@dataclass
class Job:
    """What must be true of a job. ``leases`` and ``lapsed`` map a batch to the token that holds, or last held, it."""

    batches: int
    status: str = "in_progress"
    done: dict[int, int] = field(default_factory=dict)
    leases: dict[int, str] = field(default_factory=dict)
    lapsed: dict[int, str] = field(default_factory=dict)
    expiries: dict[int, int] = field(default_factory=dict)
    ending: str = "completed"

    @property
    def free(self) -> set[int]:
        return set(range(self.batches)) - set(self.done) - set(self.leases)

    @property
    def due(self) -> bool:
        return self.status in ("finalizing", "cancelling") and not self.leases

    def settle(self) -> None:
        if self.status in ("in_progress", "paused") and len(self.done) == self.batches:
            self.status = "finalizing"


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing to the server and the same to the model."""

    client: redis.Redis
    #: Jobs that f2 began are not for f1: after that, a claim that finds nothing proves nothing.
    f2_has_claimed = False

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(self.client, f"model-{secrets.token_hex(4)}", lease_s=3_600)
        self.ledger.recovered()
        self.jobs: dict[str, Job] = {}
        #: Every claim ever made: late and repeated calls draw from it.
        self.claims: list[Claim] = []

    @initialize()
    def first_job(self) -> None:
        self.accept("a", 3)

    @rule(name=st.sampled_from(JOBS), batches=st.integers(1, MAX_BATCHES))
    def accept(self, name: str, batches: int) -> None:
        new = self.ledger.accept(job_file(name, batches, max_error_rate=1.0))
        assert new == (name not in self.jobs)
        self.jobs.setdefault(name, Job(batches))

    @rule(fingerprint=st.sampled_from(["f1", "f1", "f1", "f2"]))
    def claim(self, fingerprint: str) -> None:
        claim = self.ledger.claim(worker(fingerprint=fingerprint))
        if claim is None:
            assert not any(job.due for job in self.jobs.values())
            if fingerprint == "f1" and not self.f2_has_claimed:
                assert not any(job.status == "in_progress" and job.free for job in self.jobs.values())
            return
        self.f2_has_claimed |= fingerprint == "f2"
        self.take(claim)

    @rule()
    def claim_finalize(self) -> None:
        claim = self.ledger.claim_finalize()
        assert (claim is not None) == any(job.due for job in self.jobs.values())
        if claim is not None:
            self.take(claim)

    def take(self, claim: Claim) -> None:
        job = self.jobs[claim.job]
        if claim.kind == "finalize":
            assert job.due
            assert claim.ending == job.ending
        else:
            assert job.status == "in_progress"
            assert claim.batch in job.free
        assert claim.expiries == job.expiries.get(claim.batch, 0)
        job.leases[claim.batch] = claim.token
        job.lapsed.pop(claim.batch, None)
        self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), rows=st.integers(0, 9))
    def finish(self, data: st.DataObject, rows: int) -> None:
        """By whoever ever claimed it: in time, late, or twice."""
        claim = data.draw(st.sampled_from(self.claims))
        if claim.kind == "batch":
            self.finish_batch(claim.job, claim.batch, rows)

    @rule(name=st.sampled_from(JOBS), batch=st.integers(0, MAX_BATCHES - 1), rows=st.integers(0, 9))
    def finish_unasked(self, name: str, batch: int, rows: int) -> None:
        if name in self.jobs and batch < self.jobs[name].batches:
            self.finish_batch(name, batch, rows)

    def finish_batch(self, name: str, batch: int, rows: int) -> None:
        job = self.jobs[name]
        live = job.status not in ("completed", "cancelled", "expired", "failed")
        answer = self.ledger.finish(name, batch, None, PartCounts(completed=rows))
        assert answer.first == (live and batch not in job.done)
        if answer.first:
            job.done[batch] = rows
            job.leases.pop(batch, None)
            job.lapsed.pop(batch, None)
            job.settle()
        assert answer.finalize == job.due

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim, how = data.draw(st.sampled_from(self.claims)), data.draw(st.sampled_from(Release))
        self.ledger.release(claim.job, claim.batch, claim.token, how)
        job = self.jobs[claim.job]
        if job.leases.get(claim.batch) == claim.token:
            del job.leases[claim.batch]
            job.expiries[claim.batch] = job.expiries.get(claim.batch, 0) + (how is Release.CRASHED)

    @precondition(lambda self: any(job.leases for job in self.jobs.values()))
    @rule(data=st.data())
    def expire_lease(self, data: st.DataObject) -> None:
        held = [(name, batch) for name, job in self.jobs.items() for batch in job.leases]
        name, batch = data.draw(st.sampled_from(held))
        let_leases_expire(self.client, self.ledger, f"{name}:{batch}")
        sweep = self.ledger.sweep("s")
        assert sweep is not None
        assert sweep.returned == [(name, batch)]
        job = self.jobs[name]
        job.lapsed[batch] = job.leases.pop(batch)
        job.expiries[batch] = job.expiries.get(batch, 0) + 1

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        state = self.ledger.heartbeat([Beat(claim.job, claim.batch, claim.token)])[claim.job, claim.batch]
        job = self.jobs[claim.job]
        held = job.leases.get(claim.batch) == claim.token
        finalizer_runs = -1 in job.leases and claim.batch != -1
        revived = job.lapsed.get(claim.batch) == claim.token and not finalizer_runs
        if revived:
            job.leases[claim.batch] = job.lapsed.pop(claim.batch)
            job.expiries[claim.batch] -= 1
        if not (held or revived):
            assert state == "lost"
        elif job.status == "cancelling" and claim.batch != -1:
            assert state == job.ending
        else:
            assert state == "held"

    @rule(name=st.sampled_from(JOBS), verb=st.sampled_from(["pause", "resume"]))
    def steer(self, name: str, verb: str) -> None:
        if name not in self.jobs:
            return
        job = self.jobs[name]
        if job.status in ("in_progress", "paused"):
            job.status = getattr(self.ledger, verb)(name)
        else:
            with pytest.raises(InputError):
                getattr(self.ledger, verb)(name)

    @rule(name=st.sampled_from(JOBS), verb=st.sampled_from(["cancel", "expire"]))
    def stop(self, name: str, verb: str) -> None:
        if name not in self.jobs:
            return
        job = self.jobs[name]
        if job.status in ("in_progress", "paused"):
            job.status, job.ending = "cancelling", {"cancel": "cancelled", "expire": "expired"}[verb]
        assert getattr(self.ledger, verb)(name) == job.status

    @precondition(lambda self: any(-1 in job.leases for job in self.jobs.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, job in self.jobs.items() if -1 in job.leases]))
        job = self.jobs[name]
        counts = PartCounts(completed=sum(job.done.values()))
        self.ledger.finalized(name, Status(job.ending), counts, None)
        job.status, job.leases, job.lapsed = job.ending, {}, {}

    @rule(name=st.sampled_from(JOBS), lost=st.sets(st.integers(0, MAX_BATCHES - 1)))
    def restore(self, name: str, lost: set[int]) -> None:
        """A recover that finds the parts of batches whose finish never arrived."""
        if name not in self.jobs or self.jobs[name].status in ("completed", "cancelled", "expired"):
            return
        job = self.jobs[name]
        found = {batch: PartCounts(completed=1) for batch in lost | set(job.done) if batch < job.batches}
        self.ledger.restore(job_file(name, job.batches), found)
        for batch in found:
            job.done.setdefault(batch, 1)
            job.leases.pop(batch, None)
            job.lapsed.pop(batch, None)
        job.settle()

    @invariant()
    def counters_are_equal(self) -> None:
        for name, job in self.jobs.items():
            found = self.ledger.job(name)
            assert found is not None
            assert found.status == job.status
            assert (found.batches, found.done) == (job.batches, len(job.done))
            assert found.completed == sum(job.done.values())
            assert found.running == len(set(job.leases) - {-1})

    @invariant()
    def claimable_is_what_is_free(self) -> None:
        free = sum(len(job.free) for job in self.jobs.values() if job.status == "in_progress")
        assert self.ledger.claimable("tiny") == free

    @invariant()
    def every_lease_has_one_expiry_and_no_other_has(self) -> None:
        members = set(self.client.zrange(keys.key(self.ledger.store_id, "leases"), 0, -1))
        assert members == {f"{name}:{batch}" for name, job in self.jobs.items() for batch in job.leases}

    def teardown(self) -> None:
        """From wherever it stands, every job can be brought to its end, and then nothing stays."""
        for name, job in self.jobs.items():
            if job.status == "paused":
                self.ledger.resume(name)
        let_leases_expire(self.client, self.ledger)
        self.ledger.sweep("s")
        for fingerprint in ("f1", "f2"):
            while claim := self.ledger.claim(worker(fingerprint=fingerprint)):
                if claim.kind == "finalize":
                    self.ledger.finalized(claim.job, claim.ending, PartCounts(), claim.token)
                else:
                    assert self.ledger.finish(claim.job, claim.batch, claim.token, PartCounts()).first
        assert all(job.status.ended for job in self.ledger.jobs())
        assert not self.client.exists(keys.key(self.ledger.store_id, "live"))
        self.client.flushall()


def test_the_ledger_agrees_with_its_model(redis_server) -> None:
    LedgerMachine.client = redis_server.client
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
