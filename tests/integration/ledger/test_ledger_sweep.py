"""The sweep: leases that expired, deadlines that passed, and permits that are missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from ledger_work import PART, claimed, finish, job_file, let_leases_expire, run, worker

from jobs.ledger import Beat, Ledger, Sweep, keys
from jobs.spec import Status

PAST = datetime(2020, 1, 1, tzinfo=UTC)


def let_claims_age(client, ledger: Ledger, model: str = "tiny", seconds: float = 60.0) -> None:
    client.hincrbyfloat(keys.key(ledger.store_id, "vtime", model), "claimed", -seconds)


class TestLock:
    def test_one_sweeper_at_a_time(self, ledger: Ledger) -> None:
        assert ledger.sweep("a") == Sweep([], [], {})
        assert ledger.sweep("b") is None
        assert ledger.sweep("a") is not None

    def test_the_lock_passes_on_by_itself(self, ledger: Ledger, redis_server) -> None:
        quick = Ledger.connect(redis_server.url, ledger.store_id, sweep_s=0.1)
        assert quick.sweep("a") is not None
        time.sleep(0.1)
        assert quick.sweep("b") is not None
        quick.close()


class TestDeadlines:
    @pytest.mark.parametrize("paused", [False, True])
    def test_a_passed_deadline_stops_the_job_once(self, ledger: Ledger, paused: bool) -> None:
        ledger.accept(job_file("late", deadline=PAST))
        ledger.accept(job_file("in-time", deadline=datetime.now(UTC) + timedelta(hours=1)))
        if paused:
            ledger.pause("late")

        assert ledger.sweep("s").expired == ["late"]
        assert ledger.sweep("s").expired == []

        assert ledger.job("late").status is Status.CANCELLING
        assert ledger.job("in-time").status is Status.IN_PROGRESS
        assert claimed(ledger).ending is Status.EXPIRED

    def test_running_batches_learn_it_from_their_heartbeat(self, ledger: Ledger) -> None:
        ledger.accept(job_file(deadline=PAST))
        mine = claimed(ledger)
        ledger.sweep("s")
        assert ledger.heartbeat([Beat("job", 0, mine.token)]) == {("job", 0): "expired"}
        assert ledger.claim_finalize() is None
        assert finish(ledger, mine)

    def test_a_job_whose_batches_are_done_no_longer_expires(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1, deadline=PAST))
        ledger.finish("job", 0, None, PART)
        assert ledger.sweep("s").expired == []
        assert claimed(ledger).ending is Status.COMPLETED


class TestPermits:
    def test_every_live_model_is_named(self, ledger: Ledger) -> None:
        ledger.accept(job_file("a", model="one"))
        ledger.accept(job_file("b", model="two", batches=1))
        claimed(ledger, worker(model="two"))
        assert ledger.sweep("s").permits == {"one": 1, "two": 0}

    def test_a_stalled_model_gets_one_for_each_free_slot(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=50))
        claimed(ledger)
        ledger.register(worker("w1", slots=8, in_hand=1))
        ledger.register(worker("w2", slots=2, in_hand=3))
        ledger.register(worker("w3", slots=9, model="other"))
        assert ledger.sweep("s").permits == {"tiny": 0}
        let_claims_age(redis_server.client, ledger)
        assert ledger.sweep("s").permits == {"tiny": 7}

    def test_never_more_than_there_is_work(self, ledger: Ledger, redis_server) -> None:
        ledger.register(worker(slots=8))
        ledger.accept(job_file("a", batches=2))
        ledger.accept(job_file("b", batches=1))
        ledger.finish("b", 0, None, PART)
        assert ledger.sweep("s").permits == {"tiny": 3}
        run(ledger)
        assert ledger.sweep("s").permits == {}

    def test_work_that_is_paused_or_in_hand_needs_none(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file("paused"))
        ledger.pause("paused")
        ledger.accept(job_file("leased", batches=1))
        claimed(ledger)
        let_claims_age(redis_server.client, ledger)
        assert ledger.sweep("s").permits == {"tiny": 0}

    def test_leases_that_went_back_are_counted_at_once(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=1))
        claimed(ledger)
        let_leases_expire(redis_server.client, ledger)
        let_claims_age(redis_server.client, ledger)
        assert ledger.sweep("s") == Sweep([("job", 0)], [], {"tiny": 1})

    def test_a_stopped_job_needs_one_for_its_finalizer(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=9))
        ledger.cancel("job")
        assert ledger.sweep("s").permits == {"tiny": 1}


class TestManyJobs:
    """1,200 live jobs, more than one script looks at."""

    @pytest.fixture
    def looked_at(self, ledger: Ledger, redis_server) -> Callable[[], int]:
        """How many jobs scripts have looked at since it was called last."""
        for index in range(1_200):
            ledger.accept(job_file(f"job{index}", batches=2, created=index, model="old" if index < 1_100 else "new"))

        def looked_at() -> int:
            stats = redis_server.client.info("commandstats")
            redis_server.client.config_resetstat()
            return int(stats.get("cmdstat_hlen", {"calls": 0})["calls"])

        looked_at()
        return looked_at

    def test_a_sweep_looks_at_none_while_claims_go_on(self, ledger: Ledger, looked_at: Callable[[], int]) -> None:
        for model in ("old", "new"):
            claimed(ledger, worker(model=model))
        looked_at()
        assert ledger.sweep("s").permits == {"old": 0, "new": 0}
        assert looked_at() == 0

    def test_a_stalled_models_sweep_looks_no_further_than_it_must(
        self, ledger: Ledger, looked_at: Callable[[], int], redis_server
    ) -> None:
        claimed(ledger, worker(model="new"))
        looked_at()
        assert ledger.sweep("s").permits == {"old": 1, "new": 0}
        assert looked_at() == 100
        let_claims_age(redis_server.client, ledger, "new")
        assert ledger.sweep("s").permits == {"old": 1, "new": 1}
        assert looked_at() == 1_200

    def test_all_are_counted_where_the_count_is_asked_for(self, ledger: Ledger, looked_at: Callable[[], int]) -> None:
        assert (ledger.claimable("old"), ledger.claimable("new"), ledger.claimable("none")) == (2_200, 200, 0)
        looked_at()
        assert ledger.claimable("old", 10) >= 10
        assert looked_at() == 100

    def test_a_worker_learns_whether_there_is_work_without_a_look_at_any(
        self, ledger: Ledger, looked_at: Callable[[], int]
    ) -> None:
        looked_at()
        assert ledger.has_work(worker(model="new"))
        assert looked_at() == 0


class TestHasWork:
    def test_it_is_whether_a_claim_would_find_something(self, ledger: Ledger) -> None:
        mine, other = worker(fingerprint="f1"), worker(fingerprint="f2")
        assert not ledger.has_work(mine)
        ledger.accept(job_file(batches=2))
        assert ledger.has_work(mine)
        claims = [claimed(ledger, mine)]
        assert (ledger.has_work(mine), ledger.has_work(other)) == (True, False)
        claims.append(claimed(ledger, mine))
        assert not ledger.has_work(mine)
        for claim in claims:
            finish(ledger, claim)
        assert (ledger.has_work(mine), ledger.has_work(other)) == (True, True)
        run(ledger, other)
        assert not ledger.has_work(mine)


def test_a_sweep_handles_a_thousand_leases_and_the_next_the_rest(ledger: Ledger, redis_server) -> None:
    ledger.accept(job_file(batches=1_200))
    for _ in range(1_200):
        claimed(ledger)
    let_leases_expire(redis_server.client, ledger)
    assert [len(ledger.sweep("s").returned) for _ in range(3)] == [1_000, 200, 0]
    assert ledger.claimable("tiny") == 1_200
    assert claimed(ledger).attempt == 2
