"""A plain model of jobs in the ledger, and what workers do to both."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ledger_work import as_read_by, job_file, let_leases_expire, worker

from jobs.errors import InputError
from jobs.job_file import JobFile
from jobs.ledger import Beat, Claim, Release, keys
from jobs.results import PartCounts

JOBS = ("a", "b", "c")
FINGERPRINTS = ("f1", "f2")
#: The job versions that programs of two releases read.
PROGRAMS = ((2,), (2, 3))
ALL_VERSIONS = PROGRAMS[-1]
MAX_BATCHES = 5
FINALIZE = -1
_LATER = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass
class Job:
    """What must be true of a job. ``leases`` and ``lapsed`` map a batch to the token that holds, or last held, it;
    ``known`` maps one that was given back to its attempts by then."""

    batches: int
    deadline: bool = False
    version: int = 2
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


class LedgerRules(RuleBasedStateMachine):
    """What workers do. Each rule does one thing to the server and the same to the model."""

    client: redis.Redis
    programs: tuple[tuple[int, ...], ...] = PROGRAMS[:1]

    def __init__(self) -> None:
        super().__init__()
        store = f"model-{secrets.token_hex(4)}"
        self.ledgers = {reads: as_read_by(reads, self.client, store) for reads in PROGRAMS}
        self.turn_to(self.programs[-1])
        self.ledger.recovered()
        self.jobs: dict[str, Job] = {}
        #: Every claim ever made: late and repeated calls draw from it.
        self.claims: list[Claim] = []

    def turn_to(self, reads: tuple[int, ...]) -> None:
        """From here a program does things that reads these versions."""
        self.reads, self.ledger = reads, self.ledgers[reads]

    @initialize()
    def first_job(self) -> None:
        self.accept("a", 3, False, 2)

    @precondition(lambda self: len(self.programs) > 1)
    @rule()
    def turn_to_another(self) -> None:
        """What follows a program of the other release does: to any job, but for what it has to read it for."""
        self.turn_to(next(reads for reads in self.programs if reads != self.reads))

    @rule(
        name=st.sampled_from(JOBS),
        batches=st.integers(1, MAX_BATCHES),
        deadline=st.booleans(),
        version=st.sampled_from(ALL_VERSIONS),
    )
    def accept(self, name: str, batches: int, deadline: bool, version: int) -> None:
        job = Job(batches, deadline, version if version in self.reads else self.reads[-1])
        assert self.ledger.accept(self.file(name, job)) == (name not in self.jobs)
        self.jobs.setdefault(name, job)

    def file(self, name: str, job: Job) -> JobFile:
        found = job_file(name, job.batches, max_error_rate=1.0, deadline=_LATER if job.deadline else None)
        return found.model_copy(update={"version": job.version})

    @rule(fingerprint=st.sampled_from(["f1", "f1", "f1", "f2"]), data=st.data())
    def claim(self, fingerprint: str, data: st.DataObject) -> None:
        if len(self.programs) > 1:
            self.turn_to(data.draw(st.sampled_from(self.programs)))
        expected = self.has_work(fingerprint)
        claim = self.ledger.claim(worker(fingerprint=fingerprint, reads=self.reads))
        assert (claim is not None) == expected
        if not any(job.due for job in self.readable()):
            self.look(fingerprint)
        if claim is None:
            return
        self.take(claim, fingerprint)
        assert claim.more == self.has_work(fingerprint)

    def look(self, fingerprint: str) -> None:
        """A claim of a batch sees the jobs that nobody has begun; one that leaves and comes back is new again."""
        for job in self.readable():
            if job.claimable and not job.fingerprint:
                job.seen.add(fingerprint)

    def readable(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.version in self.reads]

    def has_work(self, fingerprint: str) -> bool:
        mine = (None, fingerprint)
        return any(job.due or (job.claimable and job.fingerprint in mine) for job in self.readable())

    @rule(name=st.sampled_from([None, *JOBS]))
    def claim_finalize(self, name: str | None) -> None:
        claim = self.ledger.claim_finalize(name)
        wanted = [self.jobs[name]] if name in self.jobs else [] if name else self.readable()
        assert (claim is not None) == any(job.due and job.version in self.reads for job in wanted)
        if claim is not None:
            self.take(claim, "")

    def take(self, claim: Claim, fingerprint: str) -> None:
        job = self.jobs[claim.job]
        assert job.version in self.reads
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

    def key(self, name: str, *parts: str) -> str:
        return keys.key(self.ledger.store_id, name, *parts)
