"""The ledger against a plain model of it: whatever happens in whatever order, both must agree."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from ledger_rules import ALL_VERSIONS, FINALIZE, FINGERPRINTS, JOBS, MAX_BATCHES, PROGRAMS, Job, LedgerRules
from ledger_work import let_leases_expire, worker

from jobs.errors import InputError
from jobs.ledger import keys
from jobs.results import PartCounts
from jobs.spec import Status
from tests.integration.conftest import keys_that_stay


class LedgerMachine(LedgerRules):
    """What people, finalizers and recoveries do beside the workers, and what must hold after each step."""

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
        if name in self.jobs and self.jobs[name].live and self.jobs[name].version in self.reads:
            self.restored(name, lost, None)

    def restored(self, name: str, parts: set[int], fingerprint: str | None) -> None:
        job = self.jobs[name]
        found = {batch: PartCounts(completed=1) for batch in parts | set(job.done) if batch < job.batches}
        self.ledger.restore(self.file(name, job), found, fingerprint)
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
        self.turn_to(self.programs[-1])
        for name, old in [(name, job) for name, job in self.jobs.items() if job.live]:
            job = self.jobs[name] = Job(old.batches, old.deadline, old.version, fingerprint=old.fingerprint)
            self.ledger.restore(self.file(name, job), {}, old.fingerprint)
            if old.status == "cancelling":
                job.status, job.ending = self.ledger.cancel(name), "cancelled"
            self.restored(name, set(old.done), old.fingerprint)
        self.jobs = {name: job for name, job in self.jobs.items() if job.live}
        self.ledger.recovered()

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
        for version in ALL_VERSIONS:
            claimable = {name: job for name, job in self.jobs.items() if job.claimable and job.version == version}
            unpinned = {name for name, job in claimable.items() if not job.fingerprint}
            assert self.members("unpinned", str(version), "tiny") == unpinned
            for fingerprint in FINGERPRINTS:
                pool = ("pinned", str(version), fingerprint, "tiny")
                own = {name for name, job in claimable.items() if job.fingerprint == fingerprint}
                seen = {name for name, job in claimable.items() if not job.fingerprint and fingerprint in job.seen}
                assert self.members(*pool) == own | seen
                for member, score in self.client.zrange(self.key(*pool), 0, -1, withscores=True):
                    if (name := member.split(":")[1]) in own:
                        assert float(self.client.hget(self.key("job", name), "pass")) == score

    @invariant()
    def lists_name_the_jobs_that_belong_there(self) -> None:
        for version in ALL_VERSIONS:
            due = {name for name, job in self.jobs.items() if job.due and job.version == version}
            assert self.members("due", str(version), "tiny") == due
        assert self.members("deadlines") == {name for name, job in self.jobs.items() if self.fires(job)}
        assert self.members("live") == {name for name, job in self.jobs.items() if job.live}
        for fingerprint in FINGERPRINTS:
            asked = worker(fingerprint=fingerprint, reads=self.reads)
            assert self.ledger.has_work(asked) == self.has_work(fingerprint)

    @invariant()
    def no_job_is_left_behind_what_its_workers_do(self) -> None:
        """No pass is earlier than the workers' time, but in a version that not all of them read."""
        for fingerprint in FINGERPRINTS:
            times = self.client.hgetall(self.key("vtime", "tiny"))
            for version in self.programs[0]:
                at = float(times.get(f"time:{fingerprint}", 0)) - float(times.get(f"behind:{version}:{fingerprint}", 0))
                heads = self.client.zrange(self.key("pinned", str(version), fingerprint, "tiny"), 0, 0, withscores=True)
                assert all(score >= at for _, score in heads)

    @invariant()
    def an_idle_redis_holds_nothing_that_stays(self) -> None:
        if not any(job.live for job in self.jobs.values()):
            assert keys_that_stay(self.client, self.ledger) == []

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
        self.turn_to(self.programs[-1])
        for fingerprint in FINGERPRINTS:
            while claim := self.ledger.claim(worker(fingerprint=fingerprint, reads=self.reads)):
                if claim.kind == "finalize":
                    self.ledger.finalized(claim.job, claim.ending, PartCounts(), claim.token)
                else:
                    assert self.ledger.finish(claim.job, claim.batch, claim.token, PartCounts()).first
        assert all(job.status.ended for job in self.ledger.jobs())
        assert not self.client.exists(self.key("live"))
        assert keys_that_stay(self.client, self.ledger) == []
        self.client.flushall()


class TwoReleasesMachine(LedgerMachine):
    """Programs of two releases: one does not read all jobs of the other, yet steers, sweeps, beats and forgets them."""

    programs = PROGRAMS


@pytest.mark.parametrize(("machine", "examples"), [(LedgerMachine, 50), (TwoReleasesMachine, 50)])
def test_the_ledger_agrees_with_its_model(redis_server, machine: type[LedgerMachine], examples: int) -> None:
    machine.client = redis_server.client
    run_state_machine_as_test(
        machine,
        settings=settings(
            # A long run by hand finds more.
            max_examples=int(os.environ.get("LEDGER_EXAMPLES", examples)),
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
