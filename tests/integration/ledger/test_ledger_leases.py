"""Leases: claim, heartbeat, finish, release, expiry and revival, alone and in races."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from ledger_work import PART, ROWS, W1, claimed, finish, job_file, job_keys, let_leases_expire, run, worker

from jobs.errors import InputError, UnknownJobError
from jobs.ledger import Beat, Claim, Finished, LeaseState, Ledger, Release, keys
from jobs.results import PartCounts

W2 = worker("w2")


def beat(ledger: Ledger, claim: Claim, rows: int = 0) -> LeaseState:
    return ledger.heartbeat([Beat(claim.job, claim.batch, claim.token, rows)])[claim.job, claim.batch]


class TestClaim:
    def test_batches_come_in_order_and_the_last_one_says_so(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=3))
        claims = [claimed(ledger) for _ in range(3)]
        assert [(claim.kind, claim.job, claim.batch, claim.attempt) for claim in claims] == [
            ("batch", "job", 0, 1),
            ("batch", "job", 1, 1),
            ("batch", "job", 2, 1),
        ]
        assert [claim.more for claim in claims] == [True, True, False]
        assert len({claim.token for claim in claims}) == 3
        assert ledger.claim(W1) is None

    def test_the_first_claim_starts_the_job(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        before = ledger.now()
        claimed(ledger)
        started = ledger.job("job").started_at
        assert before <= started <= ledger.now()
        claimed(ledger)
        assert ledger.job("job").started_at == started

    def test_only_batches_of_the_workers_model_are_claimed(self, ledger: Ledger) -> None:
        ledger.accept(job_file("a", model="one"))
        ledger.accept(job_file("b", model="two"))
        assert claimed(ledger, worker(model="two")).job == "b"
        assert ledger.claim(worker(model="three")) is None

    def test_a_job_stays_with_the_fingerprint_that_began_it(self, ledger: Ledger) -> None:
        ledger.accept(job_file("a", batches=3))
        assert claimed(ledger, worker(fingerprint="f1")).job == "a"
        assert ledger.claim(worker(fingerprint="f2")) is None

        ledger.accept(job_file("b", batches=2, created=1))
        second = claimed(ledger, worker(fingerprint="f2"))
        assert second.job == "b"
        assert {job for job, _ in run(ledger, worker(fingerprint="f1"))} == {"a"}
        ledger.release("b", second.batch, second.token)
        assert ledger.claim(worker(fingerprint="f1")) is None
        assert run(ledger, worker(fingerprint="f2")) == [("b", 0), ("b", 1), ("b", -1)]

    def test_more_means_more_for_this_worker(self, ledger: Ledger) -> None:
        ledger.accept(job_file("a", batches=1))
        ledger.accept(job_file("b", batches=2, created=1))
        assert claimed(ledger, worker(fingerprint="f1")).more
        assert claimed(ledger, worker(fingerprint="f2")).more
        assert ledger.claim(worker(fingerprint="f1")) is None

    def test_any_fingerprint_may_finalize(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        finish(ledger, claimed(ledger))
        assert claimed(ledger, worker(fingerprint="f2")).kind == "finalize"


class TestFinish:
    def test_the_first_is_counted_and_repeats_are_not(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=2))
        claim = claimed(ledger)
        counts = PartCounts(
            completed=5, failed=2, cancelled=2, expired=1, prompt_tokens=7, completion_tokens=8, errors={"poison": 2}
        )
        assert ledger.finish("job", 0, claim.token, counts) == Finished(first=True, finalize=False)
        assert ledger.finish("job", 0, claim.token, counts) == Finished(first=False, finalize=False)
        found = ledger.job("job")
        assert (found.completed, found.failed, found.cancelled, found.expired) == (5, 2, 2, 1)
        assert (found.prompt_tokens, found.completion_tokens, found.errors) == (7, 8, {"poison": 2})
        assert (found.done, found.running) == (1, 0)

    def test_it_is_accepted_from_anyone_and_ends_the_owners_lease(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=3))
        mine = claimed(ledger)
        assert ledger.finish("job", mine.batch, None, PART).first
        assert ledger.finish("job", 2, "somebody", PART).first
        assert beat(ledger, mine) is LeaseState.LOST
        assert not ledger.finish("job", mine.batch, mine.token, PART).first
        assert run(ledger) == [("job", 1), ("job", -1)]

    def test_the_last_batch_makes_finalization_due_and_so_do_repeats_until_it_is_claimed(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        claim = claimed(ledger)
        assert ledger.finish("job", 0, claim.token, PART) == Finished(first=True, finalize=True)
        assert ledger.finish("job", 0, claim.token, PART) == Finished(first=False, finalize=True)
        claimed(ledger)
        assert ledger.finish("job", 0, claim.token, PART) == Finished(first=False, finalize=False)

    def test_a_finished_batch_that_had_been_returned_is_not_claimed_again(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=2))
        late = claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        assert ledger.sweep("s").returned == [("job", 0)]
        assert ledger.finish("job", 0, late.token, PART).first
        assert run(ledger) == [("job", 1), ("job", -1)]

    def test_an_unknown_job_is_an_error_and_leaves_no_key(self, ledger: Ledger, redis_server) -> None:
        with pytest.raises(UnknownJobError):
            ledger.finish("nobody", 0, None, PART)
        assert job_keys(redis_server.client, ledger, "nobody") == set()

    @pytest.mark.parametrize("batch", [-1, 2])
    def test_a_batch_that_the_job_does_not_have_is_refused(self, ledger: Ledger, batch: int) -> None:
        ledger.accept(job_file(batches=2))
        with pytest.raises(InputError, match=f"job job has no batch {batch}"):
            ledger.finish("job", batch, None, PART)


class TestRelease:
    def test_a_released_batch_is_the_next_and_no_expiry(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=4))
        first, second, third = claimed(ledger), claimed(ledger), claimed(ledger)
        let_leases_expire(redis_server.client, ledger, "job:0")
        ledger.sweep("s")
        ledger.release("job", second.batch, second.token)
        ledger.release("job", third.batch, third.token)

        again = [claimed(ledger) for _ in range(4)]

        assert [(claim.batch, claim.attempt) for claim in again] == [(2, 2), (1, 2), (0, 2), (3, 1)]
        assert beat(ledger, first) is LeaseState.LOST

    def test_a_released_lease_cannot_be_revived(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)
        ledger.release("job", mine.batch, mine.token)
        assert beat(ledger, mine) is LeaseState.LOST
        assert ledger.heartbeat([Beat("job", mine.batch, "")]) == {("job", 0): "lost"}
        assert claimed(ledger).batch == 0

    def test_only_the_holder_can_release(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)
        ledger.release("job", mine.batch, "somebody else")
        assert beat(ledger, mine) is LeaseState.HELD
        finish(ledger, mine)
        ledger.release("job", mine.batch, mine.token)
        assert claimed(ledger).batch == 1

    def test_it_brings_a_drained_job_back(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        assert ledger.claim(W1) is None
        ledger.release("job", 0, mine.token)
        assert claimed(ledger).attempt == 2


class TestFailures:
    def test_only_runs_that_failed_are_counted(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        seen = []
        for how in (Release.RELEASED, Release.FAILED, Release.RELEASED, Release.FAILED):
            mine = claimed(ledger)
            seen.append((mine.attempt, mine.failures))
            ledger.release("job", 0, mine.token, how)
        claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        ledger.sweep("s")
        last = claimed(ledger)
        assert [*seen, (last.attempt, last.failures)] == [(1, 0), (2, 0), (3, 1), (4, 1), (6, 2)]

    def test_a_revived_lease_keeps_them(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        ledger.release("job", 0, claimed(ledger).token, Release.FAILED)
        mine = claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        ledger.sweep("s")
        assert beat(ledger, mine) is LeaseState.HELD
        ledger.release("job", 0, mine.token)
        assert claimed(ledger).failures == 1

    def test_what_an_earlier_version_noted_has_none(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        ledger.release("job", 0, claimed(ledger).token)
        name = keys.key(ledger.store_id, "job_attempts", "job")
        redis_server.client.hset(name, "0", "4|1|a1b2")
        found = claimed(ledger)
        assert (found.attempt, found.failures) == (5, 0)


class TestCrashes:
    """What ended without a word from its owner, and which row ran alone then."""

    @pytest.fixture
    def lapse(self, ledger: Ledger, redis_server) -> Callable[[], None]:
        def lapse() -> None:
            let_leases_expire(redis_server.client, ledger)
            ledger.sweep("s")

        return lapse

    def test_expiries_and_crashes_are_counted_and_releases_are_not(
        self, ledger: Ledger, lapse: Callable[[], None]
    ) -> None:
        ledger.accept(job_file(batches=1))
        seen = [claimed(ledger).expiries]
        lapse()
        for how in (Release.RELEASED, Release.FAILED, Release.CRASHED):
            mine = claimed(ledger)
            seen.append(mine.expiries)
            ledger.release("job", 0, mine.token, how)
        assert [*seen, claimed(ledger).expiries] == [0, 1, 1, 1, 2]

    def test_a_batch_that_crashed_goes_behind_the_others_that_came_back(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=3))
        first, second = claimed(ledger), claimed(ledger)
        ledger.release("job", first.batch, first.token, Release.CRASHED)
        ledger.release("job", second.batch, second.token)
        assert [claimed(ledger).batch for _ in range(3)] == [1, 0, 2]

    def test_a_crash_is_the_rows_that_ran_alone(self, ledger: Ledger, lapse: Callable[[], None]) -> None:
        ledger.accept(job_file(batches=2))
        for crashes in range(3):
            mine = claimed(ledger)
            assert mine.crashes == ({7: crashes} if crashes else {})
            assert ledger.suspect("job", mine.batch, mine.token, 7)
            lapse()
            other = claimed(ledger)
            assert (other.batch, other.crashes) == (mine.batch, {7: crashes + 1})
            ledger.release("job", other.batch, other.token)

    def test_a_row_that_survives_is_forgiven(self, ledger: Ledger, lapse: Callable[[], None]) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        ledger.suspect("job", 0, mine.token, 7)
        lapse()
        mine = claimed(ledger)
        for row in (7, 3, 4):
            ledger.suspect("job", 0, mine.token, row)
        ledger.release("job", 0, mine.token, Release.CRASHED)
        assert claimed(ledger).crashes == {4: 1}

    def test_what_a_batch_did_without_noting_a_row_blames_none(self, ledger: Ledger, lapse: Callable[[], None]) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        ledger.suspect("job", 0, mine.token, 7)
        ledger.release("job", 0, mine.token)
        claimed(ledger)
        lapse()
        assert claimed(ledger).crashes == {}

    def test_a_revived_lease_takes_the_blame_back(self, ledger: Ledger, lapse: Callable[[], None]) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        ledger.suspect("job", 0, mine.token, 7)
        lapse()
        assert beat(ledger, mine) is LeaseState.HELD
        ledger.release("job", 0, mine.token)
        again = claimed(ledger)
        assert (again.expiries, again.crashes) == (0, {})

    def test_only_the_holder_can_note_a_row(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        assert not ledger.suspect("job", 0, "somebody else", 7)
        finish(ledger, mine)
        assert not ledger.suspect("job", 0, mine.token, 7)

    def test_a_finished_batch_leaves_nothing_of_it(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=2))
        mine = claimed(ledger)
        ledger.suspect("job", 0, mine.token, 7)
        assert "job:job:suspects" in job_keys(redis_server.client, ledger, "job")
        finish(ledger, mine)
        assert "job:job:suspects" not in job_keys(redis_server.client, ledger, "job")


class TestExpiry:
    def test_a_lease_lasts_as_long_as_it_says(self, redis_server, ledger: Ledger) -> None:
        short = Ledger.connect(redis_server.url, ledger.store_id, lease_s=0.4)
        short.accept(job_file())
        mine = claimed(short)
        for _ in range(3):
            time.sleep(0.2)
            assert beat(short, mine) is LeaseState.HELD
            assert short.sweep("s").returned == []
        time.sleep(0.45)
        assert short.sweep("s").returned == [("job", 0)]
        again = claimed(short, W2)
        assert (again.batch, again.attempt) == (0, 2)
        short.close()

    def test_every_expiry_is_another_attempt(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        attempts = []
        for _ in range(3):
            attempts.append(claimed(ledger).attempt)
            let_leases_expire(redis_server.client, ledger)
            ledger.sweep("s")
        assert attempts == [1, 2, 3]

    def test_expiries_are_counted_apart_from_releases_and_revivals(self, ledger: Ledger, redis_server) -> None:
        def expiries() -> str:
            name = keys.key(ledger.store_id, "job_attempts", "job")
            return str(redis_server.client.hget(name, "0")).split("|")[1]

        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        ledger.release("job", 0, mine.token)
        assert expiries() == "0"
        mine = claimed(ledger)
        for _ in range(2):
            let_leases_expire(redis_server.client, ledger)
            ledger.sweep("s")
            assert expiries() == "1"
            assert beat(ledger, mine) is LeaseState.HELD
            assert expiries() == "0"

    def test_a_heartbeat_revives_a_lease_that_nobody_took(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        assert ledger.sweep("s").returned == [("job", 0)]

        assert beat(ledger, mine, rows=3) is LeaseState.HELD

        ledger.accept(job_file("other", batches=1, created=1))
        other = claimed(ledger, W2)
        assert (other.job, other.more) == ("other", False)
        assert ledger.job("job").running_rows == 3
        assert ledger.sweep("s").returned == []
        assert finish(ledger, mine)

    def test_an_unswept_lease_is_simply_extended(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        assert beat(ledger, mine) is LeaseState.HELD
        assert ledger.sweep("s").returned == []

    def test_a_lease_that_somebody_took_is_lost(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        late = claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        ledger.sweep("s")
        taken = claimed(ledger, W2)

        assert beat(ledger, late) is LeaseState.LOST
        assert beat(ledger, taken) is LeaseState.HELD

        ledger.release("job", 0, taken.token)
        assert beat(ledger, late) is LeaseState.LOST

    def test_a_stopping_jobs_lease_can_be_revived_until_the_finalizer_begins(
        self, ledger: Ledger, redis_server
    ) -> None:
        ledger.accept(job_file())
        one, two = claimed(ledger), claimed(ledger)
        ledger.cancel("job")
        let_leases_expire(redis_server.client, ledger)
        ledger.sweep("s")
        assert beat(ledger, one) is LeaseState.CANCELLED
        assert ledger.claim(W1) is None
        assert finish(ledger, one)
        assert claimed(ledger).kind == "finalize"
        assert beat(ledger, two) is LeaseState.LOST

    def test_a_paused_jobs_lease_expires_and_revives_like_any_other(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)
        ledger.pause("job")
        let_leases_expire(redis_server.client, ledger)
        assert ledger.sweep("s").returned == [("job", 0)]
        assert ledger.claim(W1) is None
        assert beat(ledger, mine) is LeaseState.HELD
        assert ledger.job("job").status == "paused"


class TestHeartbeat:
    def test_each_lease_gets_its_own_answer(self, ledger: Ledger) -> None:
        ledger.accept(job_file("a"))
        ledger.accept(job_file("b", created=1))
        held, cancelled = claimed(ledger), claimed(ledger)
        ledger.cancel("b")
        beats = [
            Beat("a", held.batch, held.token),
            Beat("b", cancelled.batch, cancelled.token),
            Beat("nobody", 0, "token"),
            Beat("a", 0, "wrong"),
        ]
        assert ledger.heartbeat(beats[:3]) == {("a", 0): "held", ("b", 0): "cancelled", ("nobody", 0): "lost"}
        assert ledger.heartbeat(beats[3:]) == {("a", 0): "lost"}
        assert ledger.heartbeat([]) == {}

    def test_a_bogus_beat_takes_no_batch_that_was_never_free(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=2))
        finish(ledger, claimed(ledger))
        for batch in (0, 2, 99, -1):
            assert ledger.heartbeat([Beat("job", batch, "bogus")]) == {("job", batch): "lost"}

    def test_unknown_jobs_are_held_while_the_ledger_knows_nothing(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)
        redis_server.client.flushall()
        assert beat(ledger, mine) is LeaseState.HELD
        assert redis_server.client.keys() == []

    def test_after_a_recover_running_batches_are_adopted_not_given_out_again(
        self, ledger: Ledger, redis_server
    ) -> None:
        ledger.accept(job_file(batches=4))
        done, one, two = claimed(ledger), claimed(ledger), claimed(ledger)
        finish(ledger, done)
        redis_server.client.flushall()
        ledger.restore(job_file(batches=4), {0: PART})
        ledger.recovered()

        assert beat(ledger, done) is LeaseState.LOST
        assert beat(ledger, two, rows=5) is LeaseState.HELD
        assert ledger.job("job").running_rows == 5
        assert ledger.claimable("tiny") == 2
        taken, last = claimed(ledger, W2), claimed(ledger, W2)
        assert (taken.batch, last.batch) == (1, 3)
        assert ledger.claim(W2) is None
        assert beat(ledger, one) is LeaseState.LOST
        let_leases_expire(redis_server.client, ledger, "job:2")
        ledger.sweep("s")
        assert run(ledger) == [("job", 2)]
        assert not finish(ledger, taken)
        assert finish(ledger, last)

    def test_an_adopted_batch_that_is_given_back_is_claimed_once(self, ledger: Ledger) -> None:
        ledger.restore(job_file(batches=3), {})
        assert ledger.heartbeat([Beat("job", 1, "token")]) == {("job", 1): "held"}
        assert ledger.job("job").started_at is not None
        ledger.release("job", 1, "token")
        assert run(ledger) == [("job", 1), ("job", 0), ("job", 2), ("job", -1)]

    def test_a_hundred_leases_go_in_one_call(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1_200))
        claims = [claimed(ledger) for _ in range(1_200)]
        states = ledger.heartbeat([Beat(c.job, c.batch, c.token, 1, 2) for c in claims])
        assert Counter(states.values()) == {LeaseState.HELD: 1_200}
        assert ledger.job("job").running_tokens == 2_400


class TestFinalizeLease:
    def finalizing(self, ledger: Ledger, job: str = "job") -> None:
        ledger.accept(job_file(job, batches=1))
        ledger.finish(job, 0, None, PART)

    def test_one_at_a_time_holds_it(self, ledger: Ledger) -> None:
        self.finalizing(ledger)
        claim = claimed(ledger)
        assert claim.more is False
        assert ledger.claim(W2) is None
        assert ledger.claim_finalize("job") is None
        assert beat(ledger, claim) is LeaseState.HELD

    def test_it_goes_before_batches(self, ledger: Ledger) -> None:
        ledger.accept(job_file("other", batches=3))
        self.finalizing(ledger)
        assert [claimed(ledger).job, claimed(ledger).job] == ["job", "other"]

    def test_it_expires_and_is_taken_over(self, ledger: Ledger, redis_server) -> None:
        self.finalizing(ledger)
        late = claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        assert ledger.sweep("s").returned == [("job", -1)]
        again = claimed(ledger, W2)
        assert (again.kind, again.attempt) == ("finalize", 2)
        assert beat(ledger, late) is LeaseState.LOST
        assert beat(ledger, again) is LeaseState.HELD

    def test_it_is_revived_and_released_like_any_other(self, ledger: Ledger, redis_server) -> None:
        self.finalizing(ledger)
        mine = claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        ledger.sweep("s")
        assert beat(ledger, mine) is LeaseState.HELD
        assert ledger.claim(W2) is None
        ledger.release("job", -1, mine.token)
        assert beat(ledger, mine) is LeaseState.LOST
        assert claimed(ledger, W2).attempt == 2

    def test_a_stopping_jobs_finalizer_goes_on(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        ledger.expire("job")
        mine = claimed(ledger)
        assert beat(ledger, mine) is LeaseState.HELD
        assert mine.ending == "expired"

    def test_it_can_be_claimed_alone_for_one_job_or_any(self, ledger: Ledger) -> None:
        assert ledger.claim_finalize() is None
        assert ledger.claim_finalize("nobody") is None
        for job in ("a", "b", "c"):
            self.finalizing(ledger, job)
        ledger.accept(job_file("running", model="other"))
        assert ledger.claim_finalize("running") is None
        assert ledger.claim_finalize("b", owner="exporter").job == "b"
        first, second = ledger.claim_finalize(), ledger.claim_finalize()
        assert {first.job, second.job} == {"a", "c"}
        assert (first.more, second.more) == (True, False)
        assert ledger.claim_finalize() is None


class TestRaces:
    def test_no_batch_is_leased_twice_and_every_batch_is_done_once(self, ledger: Ledger) -> None:
        for index in range(3):
            ledger.accept(job_file(f"job{index}", batches=60, created=index))

        def work(number: int) -> list[tuple[str, int]]:
            return run(ledger, worker(f"w{number}"))

        with ThreadPoolExecutor(8) as pool:
            done = [item for part in pool.map(work, range(8)) for item in part]

        assert Counter(done) == Counter((f"job{i}", batch) for i in range(3) for batch in range(-1, 60))
        assert {job.status for job in ledger.jobs()} == {"completed"}

    def test_of_many_finishes_of_a_batch_one_is_first(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=20))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: ledger.finish("job", n % 20, None, PART), range(160)))
        assert sum(answer.first for answer in answers) == 20
        assert ledger.job("job").completed == 20 * ROWS

    def test_workers_that_lose_and_return_leases_still_do_every_batch(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=80))
        first: Counter[int] = Counter()

        def work(number: int) -> None:
            while claim := ledger.claim(worker(f"w{number}")):
                if claim.kind == "finalize":
                    ledger.release(claim.job, claim.batch, claim.token)
                    return
                if claim.attempt == 1 and claim.batch % 4 == 0:
                    ledger.release(claim.job, claim.batch, claim.token)
                    continue
                if claim.attempt == 1 and claim.batch % 4 == 1:
                    let_leases_expire(redis_server.client, ledger, f"job:{claim.batch}")
                    ledger.sweep("one and the same")
                if ledger.finish(claim.job, claim.batch, claim.token, PART).first:
                    first[claim.batch] += 1

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))

        assert first == Counter(range(80))
        assert ledger.job("job").completed == 80 * ROWS
        assert ledger.job("job").status == "finalizing"

    def test_of_many_accepts_one_is_new(self, ledger: Ledger) -> None:
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda _: ledger.accept(job_file()), range(32))) == 1
