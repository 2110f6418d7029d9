"""The ledger against a plain model of it: whatever happens in whatever order, both must agree."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

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
from jobs.spec import JobFile, Status

JOBS = ("a", "b", "c")
FINGERPRINTS = ("f1", "f2")
MAX_BATCHES = 5
FINALIZE = -1
_LATER = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass
class Job:
    """What must be true of a job. ``leases`` and ``lapsed`` map a batch to the token that holds, or last held, it;
    ``known`` maps one that was given back to its attempts by then."""

    batches: int
    deadline: bool = False
    status: str = "in_progress"
    fingerprint: str | None = None
    #: The fingerprints whose workers have seen it among the jobs that nobody has begun.
    seen: set[str] = field(default_factory=set)
    done: dict[int, int] = field(default_factory=dict)
    leases: dict[int, str] = field(default_factory=dict)
    lapsed: dict[int, str] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    known: dict[int, int] = field(default_factory=dict)
    expiries: dict[int, int] = field(default_factory=dict)
    ending: str = "completed"

    @property
    def free(self) -> set[int]:
        return set(range(self.batches)) - set(self.done) - set(self.leases)

    @property
    def claimable(self) -> bool:
        return self.status == "in_progress" and bool(self.free)

    @property
    def due(self) -> bool:
        return self.status in ("finalizing", "cancelling") and not self.leases

    @property
    def live(self) -> bool:
        return self.status in ("in_progress", "paused", "finalizing", "cancelling")

    def settle(self) -> None:
        if self.status in ("in_progress", "paused") and len(self.done) == self.batches:
            self.status = "finalizing"

    def finish(self, batch: int, rows: int) -> None:
        self.done[batch] = rows
        for known in (self.leases, self.lapsed, self.attempts, self.known, self.expiries):
            known.pop(batch, None)

    def give_back(self, batch: int, *, expired: bool, crashed: bool) -> None:
        token = self.leases.pop(batch)
        if expired:
            self.lapsed[batch] = token
        self.known[batch] = self.attempts[batch]
        self.expiries[batch] = self.expiries.get(batch, 0) + (expired or crashed)

    def end(self, status: str) -> None:
        self.status, self.leases, self.lapsed = status, {}, {}


class LedgerMachine(RuleBasedStateMachine):
    """Each rule does one thing to the server and the same to the model."""

    client: redis.Redis

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(self.client, f"model-{secrets.token_hex(4)}", lease_s=3_600)
        self.ledger.recovered()
        self.jobs: dict[str, Job] = {}
        #: Every claim ever made: late and repeated calls draw from it.
        self.claims: list[Claim] = []

    @initialize()
    def first_job(self) -> None:
        self.accept("a", 3, False)

    @rule(name=st.sampled_from(JOBS), batches=st.integers(1, MAX_BATCHES), deadline=st.booleans())
    def accept(self, name: str, batches: int, deadline: bool) -> None:
        new = self.ledger.accept(self.file(name, batches, deadline))
        assert new == (name not in self.jobs)
        self.jobs.setdefault(name, Job(batches, deadline))

    def file(self, name: str, batches: int, deadline: bool) -> JobFile:
        return job_file(name, batches, max_error_rate=1.0, deadline=_LATER if deadline else None)

    @rule(fingerprint=st.sampled_from(["f1", "f1", "f1", "f2"]))
    def claim(self, fingerprint: str) -> None:
        expected = self.has_work(fingerprint)
        claim = self.ledger.claim(worker(fingerprint=fingerprint))
        assert (claim is not None) == expected
        if not any(job.due for job in self.jobs.values()):
            self.look(fingerprint)
        if claim is None:
            return
        self.take(claim, fingerprint)
        assert claim.more == self.has_work(fingerprint)

    def look(self, fingerprint: str) -> None:
        """A claim of a batch sees the jobs that nobody has begun; one that leaves and comes back is new again."""
        for job in self.jobs.values():
            if job.claimable and not job.fingerprint:
                job.seen.add(fingerprint)

    def has_work(self, fingerprint: str) -> bool:
        mine = (None, fingerprint)
        return any(job.due or (job.claimable and job.fingerprint in mine) for job in self.jobs.values())

    @rule(name=st.sampled_from([None, *JOBS]))
    def claim_finalize(self, name: str | None) -> None:
        claim = self.ledger.claim_finalize(name)
        assert (claim is not None) == any(job.due for other, job in self.jobs.items() if name in (None, other))
        if claim is not None:
            self.take(claim, "")

    def take(self, claim: Claim, fingerprint: str) -> None:
        job = self.jobs[claim.job]
        if claim.kind == "finalize":
            assert job.due
            assert claim.ending == job.ending
        else:
            assert job.status == "in_progress"
            assert claim.batch in job.free
            assert job.fingerprint in (None, fingerprint)
            job.fingerprint = fingerprint
        assert claim.expiries == job.expiries.get(claim.batch, 0)
        assert claim.attempt == job.known.get(claim.batch, 0) + 1
        job.leases[claim.batch], job.attempts[claim.batch] = claim.token, claim.attempt
        job.lapsed.pop(claim.batch, None)
        self.claims.append(claim)

    def drawn_claim(self, data: st.DataObject) -> Claim:
        """Any that was ever made, the last ones more often: of those more is still to come."""
        return data.draw(st.sampled_from(self.claims) | st.sampled_from(self.claims[-3:]))

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), rows=st.integers(0, 9))
    def finish(self, data: st.DataObject, rows: int) -> None:
        """By whoever ever claimed it: in time, late, or twice."""
        claim = self.drawn_claim(data)
        if claim.kind == "batch":
            self.finish_batch(claim.job, claim.batch, rows)

    @rule(name=st.sampled_from(JOBS), batch=st.integers(0, MAX_BATCHES - 1), rows=st.integers(0, 9))
    def finish_unasked(self, name: str, batch: int, rows: int) -> None:
        self.finish_batch(name, batch, rows)

    def finish_batch(self, name: str, batch: int, rows: int) -> None:
        job = self.jobs.get(name)
        if job is None or batch >= job.batches:
            with pytest.raises(InputError):
                self.ledger.finish(name, batch, None, PartCounts(completed=rows))
            return
        answer = self.ledger.finish(name, batch, None, PartCounts(completed=rows))
        assert answer.first == (job.live and batch not in job.done)
        if answer.first:
            job.finish(batch, rows)
            job.settle()
        assert answer.finalize == job.due

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim, how = self.drawn_claim(data), data.draw(st.sampled_from(Release))
        self.ledger.release(claim.job, claim.batch, claim.token, how)
        job = self.jobs.get(claim.job)
        if job is not None and job.leases.get(claim.batch) == claim.token:
            job.give_back(claim.batch, expired=False, crashed=how is Release.CRASHED)
            job.lapsed.pop(claim.batch, None)

    @precondition(lambda self: any(job.leases for job in self.jobs.values()))
    @rule(data=st.data(), beats=st.booleans())
    def expire_lease(self, data: st.DataObject, beats: bool) -> None:
        held = [(name, batch) for name, job in self.jobs.items() for batch in job.leases]
        name, batch = data.draw(st.sampled_from(held))
        let_leases_expire(self.client, self.ledger, f"{name}:{batch}")
        sweep = self.ledger.sweep("s")
        assert sweep is not None
        assert sweep.returned == [(name, batch)]
        self.jobs[name].give_back(batch, expired=True, crashed=False)
        if beats:
            token = self.jobs[name].lapsed[batch]
            self.beat(next(claim for claim in self.claims if claim.token == token))

    @precondition(lambda self: any(self.fires(job) for job in self.jobs.values()))
    @rule(data=st.data())
    def deadline(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, job in self.jobs.items() if self.fires(job)]))
        self.client.zadd(self.key("deadlines"), {name: 1.0}, xx=True)
        sweep = self.ledger.sweep("s")
        assert sweep is not None
        assert sweep.expired == [name]
        self.jobs[name].status, self.jobs[name].ending = "cancelling", "expired"

    @staticmethod
    def fires(job: Job) -> bool:
        return job.deadline and job.status in ("in_progress", "paused")

    @precondition(lambda self: self.claims)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        self.beat(self.drawn_claim(data))

    def beat(self, claim: Claim) -> None:
        state = self.ledger.heartbeat([Beat(claim.job, claim.batch, claim.token)])[claim.job, claim.batch]
        job = self.jobs.get(claim.job)
        if job is None or not self.extends(job, claim):
            assert state == "lost"
        elif job.status == "cancelling" and claim.batch != FINALIZE:
            assert state == job.ending
        else:
            assert state == "held"

    def extends(self, job: Job, claim: Claim) -> bool:
        """Whether a heartbeat of this lease counts: it is held, has lapsed, or a recover did not know of it."""
        batch = claim.batch
        if not job.live or batch in job.leases:
            return job.leases.get(batch) == claim.token
        waits = job.due if batch == FINALIZE else batch in job.free and FINALIZE not in job.leases
        revived, adopted = job.lapsed.get(batch) == claim.token, batch not in job.known
        if not waits or not (revived or adopted):
            return False
        if revived:
            job.expiries[batch] -= 1
        job.lapsed.pop(batch, None)
        job.leases[batch], job.attempts[batch] = claim.token, job.known.get(batch, 1)
        return True

    @rule(name=st.sampled_from(JOBS), verb=st.sampled_from(["pause", "resume"]))
    def steer(self, name: str, verb: str) -> None:
        job = self.jobs.get(name)
        if job is not None and job.status in ("in_progress", "paused"):
            job.status = getattr(self.ledger, verb)(name)
            if verb == "pause":
                job.seen.clear()
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

    @precondition(lambda self: any(FINALIZE in job.leases for job in self.jobs.values()))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([name for name, job in self.jobs.items() if FINALIZE in job.leases]))
        job = self.jobs[name]
        counts = PartCounts(completed=sum(job.done.values()))
        self.ledger.finalized(name, Status(job.ending), counts, None)
        job.end(job.ending)

    @precondition(lambda self: any(job.status == "finalizing" for job in self.jobs.values()))
    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        """A finalizer finds that parts are gone."""
        name = data.draw(st.sampled_from([name for name, job in self.jobs.items() if job.status == "finalizing"]))
        job = self.jobs[name]
        gone = data.draw(st.sets(st.sampled_from(sorted(job.done)), min_size=1))
        for batch in gone:
            del job.done[batch]
            job.known[batch] = 1
        assert self.ledger.reopen(name, sorted(gone), PartCounts(completed=sum(job.done.values())))
        job.status = "in_progress"
        job.leases.pop(FINALIZE, None)

    @rule(name=st.sampled_from(JOBS), odds=st.integers(0, 3))
    def fail(self, name: str, odds: int) -> None:
        if odds == 0:
            self.ledger.fail(name, "a reason")
            if name in self.jobs and self.jobs[name].live:
                self.jobs[name].end("failed")

    @rule(name=st.sampled_from(JOBS), odds=st.integers(0, 3))
    def forget(self, name: str, odds: int) -> None:
        if odds == 0:
            self.ledger.forget(name)
            self.jobs.pop(name, None)

    @rule(name=st.sampled_from(JOBS), lost=st.sets(st.integers(0, MAX_BATCHES - 1)))
    def restore(self, name: str, lost: set[int]) -> None:
        """A recover that finds the parts of batches whose finish never arrived."""
        if name in self.jobs and self.jobs[name].live:
            self.restored(name, lost, None)

    def restored(self, name: str, parts: set[int], fingerprint: str | None) -> None:
        job = self.jobs[name]
        found = {batch: PartCounts(completed=1) for batch in parts | set(job.done) if batch < job.batches}
        self.ledger.restore(self.file(name, job.batches, job.deadline), found, fingerprint)
        job.fingerprint = job.fingerprint or fingerprint
        for batch in found:
            if batch not in job.done:
                job.finish(batch, 1)
        job.settle()

    @rule(odds=st.integers(0, 3))
    def lose_redis(self, odds: int) -> None:
        """All is lost and recovered: what is pinned, cancelled or in a part is known to the store."""
        if odds:
            return
        for key in self.client.keys(keys.prefix(self.ledger.store_id) + "*"):
            self.client.delete(key)
        for name, old in [(name, job) for name, job in self.jobs.items() if job.live]:
            job = self.jobs[name] = Job(old.batches, old.deadline, fingerprint=old.fingerprint)
            self.ledger.restore(self.file(name, job.batches, job.deadline), {}, old.fingerprint)
            if old.status == "cancelling":
                job.status, job.ending = self.ledger.cancel(name), "cancelled"
            self.restored(name, set(old.done), old.fingerprint)
        self.jobs = {name: job for name, job in self.jobs.items() if job.live}
        self.ledger.recovered()

    def key(self, name: str, *parts: str) -> str:
        return keys.key(self.ledger.store_id, name, *parts)

    def members(self, name: str, *parts: str) -> set[str]:
        return {str(member).rsplit(":", 1)[-1] for member in self.client.zrange(self.key(name, *parts), 0, -1)}

    @invariant()
    def counters_are_equal(self) -> None:
        for name, job in self.jobs.items():
            found = self.ledger.job(name)
            assert found is not None
            assert found.status == job.status
            assert (found.batches, found.done) == (job.batches, len(job.done))
            assert found.completed == sum(job.done.values())
            assert found.running == len(set(job.leases) - {FINALIZE})

    @invariant()
    def claimable_is_what_is_free(self) -> None:
        free = sum(len(job.free) for job in self.jobs.values() if job.status == "in_progress")
        assert self.ledger.claimable("tiny") == free

    @invariant()
    def pools_list_the_claimable_jobs_at_their_passes(self) -> None:
        claimable = {name: job for name, job in self.jobs.items() if job.claimable}
        assert self.members("unpinned", "tiny") == {name for name, job in claimable.items() if not job.fingerprint}
        for fingerprint in FINGERPRINTS:
            pool = ("pinned", fingerprint, "tiny")
            own = {name for name, job in claimable.items() if job.fingerprint == fingerprint}
            seen = {name for name, job in claimable.items() if not job.fingerprint and fingerprint in job.seen}
            assert self.members(*pool) == own | seen
            for member, score in self.client.zrange(self.key(*pool), 0, -1, withscores=True):
                if (name := member.split(":")[1]) in own:
                    assert float(self.client.hget(self.key("job", name), "pass")) == score

    @invariant()
    def lists_name_the_jobs_that_belong_there(self) -> None:
        assert self.members("due", "tiny") == {name for name, job in self.jobs.items() if job.due}
        assert self.members("deadlines") == {name for name, job in self.jobs.items() if self.fires(job)}
        assert self.members("live") == {name for name, job in self.jobs.items() if job.live}
        for fingerprint in FINGERPRINTS:
            assert self.ledger.has_work(worker(fingerprint=fingerprint)) == self.has_work(fingerprint)

    @invariant()
    def every_lease_has_one_expiry_and_no_other_has(self) -> None:
        members = set(self.client.zrange(self.key("leases"), 0, -1))
        assert members == {f"{name}:{batch}" for name, job in self.jobs.items() for batch in job.leases}

    def teardown(self) -> None:
        """From wherever it stands, every job can be brought to its end, and then nothing stays."""
        for name, job in self.jobs.items():
            if job.status == "paused":
                self.ledger.resume(name)
        let_leases_expire(self.client, self.ledger)
        self.ledger.sweep("s")
        for fingerprint in FINGERPRINTS:
            while claim := self.ledger.claim(worker(fingerprint=fingerprint)):
                if claim.kind == "finalize":
                    self.ledger.finalized(claim.job, claim.ending, PartCounts(), claim.token)
                else:
                    assert self.ledger.finish(claim.job, claim.batch, claim.token, PartCounts()).first
        assert all(job.status.ended for job in self.ledger.jobs())
        assert not self.client.exists(self.key("live"))
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
