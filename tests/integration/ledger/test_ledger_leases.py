"""Leases from claim to finish or release, alone and in races."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from ledger_work import PART, ROWS, W1, beat, claimed, finish, job_file, job_keys, let_leases_expire, run, worker

from jobs.errors import InputError, UnknownJobError
from jobs.ledger import Beat, Finished, LeaseState, Ledger, Release, keys
from jobs.results import PartCounts


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
