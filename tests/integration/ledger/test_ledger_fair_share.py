"""How claims are shared between jobs: by weight, and so that nobody waits behind anybody."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from ledger_work import claimed, finish, job_file, let_leases_expire, run, worker

from jobs.ledger import Ledger


def jobs_of(ledger: Ledger, claims: int) -> list[str]:
    """The jobs of the next so many claims, which stay leased."""
    return [claimed(ledger).job for _ in range(claims)]


def test_equal_jobs_take_turns_in_order_of_creation(ledger: Ledger) -> None:
    for index, job in enumerate(["z", "a", "m"]):
        ledger.accept(job_file(job, batches=10, created=index))
    assert jobs_of(ledger, 6) == ["z", "a", "m"] * 2


@pytest.mark.parametrize("claims", [70, 350])
def test_claims_are_shared_by_weight(ledger: Ledger, claims: int) -> None:
    for priority in (0, 1, 2):
        ledger.accept(job_file(f"w{2**priority}", batches=1_000, created=priority, priority=priority))
    shares = Counter(jobs_of(ledger, claims))
    for weight in (1, 2, 4):
        assert shares[f"w{weight}"] == pytest.approx(claims * weight / 7, abs=2)


def test_a_negative_priority_is_a_fraction_of_a_share(ledger: Ledger) -> None:
    ledger.accept(job_file("normal", batches=1_000))
    ledger.accept(job_file("low", batches=1_000, created=1, priority=-3))
    assert Counter(jobs_of(ledger, 180))["low"] == pytest.approx(20, abs=2)


def test_a_batch_is_charged_by_what_it_may_cost(ledger: Ledger) -> None:
    ledger.accept(job_file("long", batches=1_000, tokens=1_000 * 4_000))
    ledger.accept(job_file("short", batches=1_000, created=1, tokens=1_000 * 1_000))
    assert Counter(jobs_of(ledger, 100))["short"] == pytest.approx(80, abs=2)


def test_a_small_job_behind_a_huge_one_is_claimed_next(ledger: Ledger) -> None:
    ledger.accept(job_file("huge", batches=40_000, tokens=10_000_000 * 256))
    jobs_of(ledger, 20)
    ledger.accept(job_file("small", batches=1, created=1, tokens=10 * 256))
    assert jobs_of(ledger, 2) == ["small", "huge"]


def test_a_small_job_of_the_lowest_priority_behind_a_huge_one_of_the_highest_is_claimed_next(ledger: Ledger) -> None:
    ledger.accept(job_file("huge", batches=40_000, tokens=10_000_000 * 256, priority=5))
    jobs_of(ledger, 500)
    ledger.accept(job_file("small", batches=1, created=1, tokens=10 * 256, priority=-5))
    assert jobs_of(ledger, 2) == ["small", "huge"]


def test_hundreds_of_claims_of_many_workers_are_shared_by_powers_of_two(ledger: Ledger) -> None:
    priorities = range(-2, 3)
    for priority in priorities:
        ledger.accept(job_file(f"p{priority}", batches=40_000, created=priority, priority=priority))

    def work(number: int) -> Counter[str]:
        done: Counter[str] = Counter()
        for _ in range(775 // 5):
            claim = claimed(ledger, worker(f"w{number}"))
            finish(ledger, claim)
            done[claim.job] += 1
        return done

    with ThreadPoolExecutor(5) as pool:
        shares = sum(pool.map(work, range(5)), Counter[str]())

    for priority in priorities:
        assert shares[f"p{priority}"] == pytest.approx(775 * 2.0**priority / 7.75, abs=3)


def test_a_resumed_jobs_weight_counts_from_when_it_comes_back(ledger: Ledger) -> None:
    for index, job in enumerate(["steady", "paused"]):
        ledger.accept(job_file(job, batches=40_000, created=index, priority=2 * index))
    assert Counter(jobs_of(ledger, 100))["paused"] == pytest.approx(80, abs=2)
    ledger.pause("paused")
    assert set(jobs_of(ledger, 300)) == {"steady"}
    ledger.resume("paused")
    assert Counter(jobs_of(ledger, 100))["paused"] == pytest.approx(80, abs=2)


def test_many_small_jobs_do_not_shut_out_a_huge_one(ledger: Ledger) -> None:
    ledger.accept(job_file("huge", batches=1_000))
    shares: Counter[str] = Counter()
    for index in range(50):
        ledger.accept(job_file(f"small{index}", batches=1, created=index + 1))
        shares.update("huge" if job == "huge" else "small" for job in jobs_of(ledger, 2))
    assert shares == {"huge": 50, "small": 50}


def test_time_away_is_no_credit(ledger: Ledger) -> None:
    ledger.accept(job_file("steady", batches=1_000))
    ledger.accept(job_file("paused", batches=1_000, created=1))
    jobs_of(ledger, 2)
    ledger.pause("paused")
    jobs_of(ledger, 100)
    ledger.resume("paused")
    assert Counter(jobs_of(ledger, 20)) == {"steady": 10, "paused": 10}


def test_a_drained_job_comes_back_at_the_current_time(ledger: Ledger, redis_server) -> None:
    ledger.accept(job_file("steady", batches=1_000))
    ledger.accept(job_file("drained", batches=4, created=1))
    jobs_of(ledger, 8)
    jobs_of(ledger, 50)
    let_leases_expire(redis_server.client, ledger, *(f"drained:{batch}" for batch in range(4)))
    assert len(ledger.sweep("s").returned) == 4
    assert Counter(jobs_of(ledger, 8)) == {"steady": 4, "drained": 4}


def test_a_new_priority_counts_from_the_next_claim(ledger: Ledger) -> None:
    for index, job in enumerate("ab"):
        ledger.accept(job_file(job, batches=1_000, created=index))
    assert Counter(jobs_of(ledger, 20)) == {"a": 10, "b": 10}
    ledger.priority("b", 2)
    assert Counter(jobs_of(ledger, 100))["b"] == pytest.approx(80, abs=2)


def test_pinned_and_new_jobs_share_alike(ledger: Ledger) -> None:
    ledger.accept(job_file("pinned", batches=1_000))
    jobs_of(ledger, 10)
    for index in range(5):
        ledger.accept(job_file(f"new{index}", batches=1_000, created=1 + index))
    shares = Counter(jobs_of(ledger, 60))
    assert set(shares.values()) == {10}


def test_models_do_not_share_time(ledger: Ledger) -> None:
    ledger.accept(job_file("a", batches=100, model="one"))
    for _ in range(50):
        claimed(ledger, worker(model="one"))
    ledger.accept(job_file("b", batches=3, model="two", created=1))
    assert run(ledger, worker(model="two")) == [("b", 0), ("b", 1), ("b", 2), ("b", -1)]


def test_passes_keep_their_digits_when_they_grow_large(ledger: Ledger) -> None:
    ledger.accept(job_file("big", batches=10, tokens=10 * 10**15))
    assert jobs_of(ledger, 3) == ["big"] * 3
    for index, job in enumerate("ab"):
        ledger.accept(job_file(job, batches=10, created=1 + index, tokens=10))
    # One token more than 2 x 10^15: with the 14 digits of Lua's tostring, "a" would never move on.
    assert jobs_of(ledger, 6) == ["a", "b"] * 3


def test_of_a_begun_and_a_new_job_with_equal_passes_the_older_goes_first(ledger: Ledger) -> None:
    for index, job in enumerate(["x", "y"]):
        ledger.accept(job_file(job, batches=10, created=index))
    assert jobs_of(ledger, 3) == ["x", "y", "x"]
    ledger.accept(job_file("new", batches=10, created=2))
    assert jobs_of(ledger, 2) == ["y", "new"]


def test_of_thousands_of_jobs_that_are_new_none_is_passed_over(ledger: Ledger) -> None:
    for index in range(2_001):
        ledger.accept(job_file(f"job{index}", batches=2, created=index))
    assert jobs_of(ledger, 2_001) == [f"job{index}" for index in range(2_001)]
    for index in range(2_001):
        ledger.forget(f"job{index}")


class TestTwoFleetsOfOneModel:
    """Workers with other weights, or another dtype, under one alias: jobs belong to one of them, and so do passes."""

    FAST, SLOW = worker("fast", fingerprint="f1"), worker("slow", fingerprint="f2")

    def begin(self, ledger: Ledger, *fast: str) -> None:
        """Jobs of the fast workers, and one of the slow ones, who have claimed last and far less."""
        for index, job in enumerate(fast):
            ledger.accept(job_file(job, batches=10_000, created=index))
            claimed(ledger, self.FAST)
        ledger.accept(job_file("of-the-slow", batches=10_000, created=10))
        claimed(ledger, self.SLOW)
        for _ in range(200):
            claimed(ledger, self.FAST)
        claimed(ledger, self.SLOW)

    def test_a_job_that_enters_after_a_slow_fleets_claim_does_not_take_the_fast_one(self, ledger: Ledger) -> None:
        self.begin(ledger, "of-the-fast")
        ledger.accept(job_file("new", batches=1_000, created=20))
        shares = Counter(claimed(ledger, self.FAST).job for _ in range(20))
        assert shares == {"new": 10, "of-the-fast": 10}

    def test_a_job_that_enters_after_a_fast_fleets_claim_does_not_wait_for_the_slow_one(self, ledger: Ledger) -> None:
        self.begin(ledger, "of-the-fast")
        claimed(ledger, self.FAST)
        ledger.accept(job_file("new", batches=1_000, created=20))
        assert [claimed(ledger, self.SLOW).job for _ in range(2)] == ["new", "of-the-slow"]

    def test_a_job_that_is_resumed_goes_on_at_the_time_of_its_own_fleet(self, ledger: Ledger) -> None:
        self.begin(ledger, "a", "b")
        ledger.pause("a")
        for _ in range(100):
            claimed(ledger, self.FAST)
        claimed(ledger, self.SLOW)
        ledger.resume("a")
        shares = Counter(claimed(ledger, self.FAST).job for _ in range(20))
        assert shares["a"] == pytest.approx(10, abs=1)

    def test_a_job_that_nobody_began_is_claimed_once_whoever_has_seen_it(self, ledger: Ledger) -> None:
        self.begin(ledger, "of-the-fast")
        for index, job in enumerate(["x", "y"]):
            ledger.accept(job_file(job, batches=1, created=20 + index))
        assert [claimed(ledger, by).job for by in (self.FAST, self.SLOW)] == ["x", "y"]
        assert [claimed(ledger, by).job for by in (self.FAST, self.SLOW)] == ["of-the-fast", "of-the-slow"]

    def test_a_job_that_was_paused_before_it_began_is_seen_again(self, ledger: Ledger) -> None:
        self.begin(ledger, "of-the-fast")
        for index, job in enumerate(["x", "y"]):
            ledger.accept(job_file(job, batches=1, created=20 + index))
        claimed(ledger, self.FAST)
        ledger.pause("y")
        assert {claimed(ledger, by).job for by in (self.FAST, self.SLOW)} == {"of-the-fast", "of-the-slow"}
        ledger.resume("y")
        assert claimed(ledger, self.SLOW).job == "y"
