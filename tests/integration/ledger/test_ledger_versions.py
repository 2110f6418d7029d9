"""Programs of several releases on one Redis: each claims the jobs that it reads, and none works in another's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from jobs.errors import LayoutError
from jobs.ledger import LeaseState, Ledger, keys
from tests.integration.ledger.ledger_work import (
    W1,
    as_read_by,
    beat,
    claimed,
    finish,
    job_file,
    let_leases_expire,
    run,
    state,
    worker,
)

LATER = worker("later", reads=(2, 3))


@pytest.fixture
def later(ledger: Ledger, redis_server) -> Ledger:
    """The same ledger as a program has it that reads jobs of version 3 too."""
    return as_read_by(LATER.reads, redis_server.client, ledger.store_id)


def accept(ledger: Ledger, job: str, version: int, batches: int = 2, created: float = 0.0, priority: int = 0) -> None:
    ledger.accept(job_file(job, batches, created=created, priority=priority).model_copy(update={"version": version}))


def test_jobs_are_claimed_by_those_who_read_them(ledger: Ledger, later: Ledger) -> None:
    accept(later, "new", 3)
    assert (ledger.has_work(W1), later.has_work(LATER)) == (False, True)
    assert ledger.claim(W1) is None
    accept(ledger, "old", 2, created=1)
    assert run(ledger) == [("old", 0), ("old", 1), ("old", -1)]
    assert run(later, LATER) == [("new", 0), ("new", 1), ("new", -1)]


def test_a_worker_that_reads_both_shares_itself_fairly(ledger: Ledger, later: Ledger) -> None:
    accept(ledger, "old", 2)
    accept(later, "new", 3, created=1)
    accept(ledger, "old-too", 2, created=2)
    done = [job for job, batch in run(later, LATER) if batch >= 0]
    assert done == ["old", "new", "old-too", "old", "new", "old-too"]


def test_a_batch_that_comes_back_is_left_to_those_who_read_it_too(ledger: Ledger, later: Ledger, redis_server) -> None:
    accept(later, "new", 3, batches=1)
    assert later.claim(LATER) is not None
    let_leases_expire(redis_server.client, ledger)
    swept = ledger.sweep("old")
    assert swept is not None
    assert swept.returned == [("new", 0)]
    assert ledger.claim(W1) is None
    assert run(later, LATER) == [("new", 0), ("new", -1)]


def test_nobody_else_ends_a_job(ledger: Ledger, later: Ledger) -> None:
    accept(later, "new", 3, batches=1)
    claim = later.claim(LATER)
    assert claim is not None
    assert finish(ledger, claim), "whoever has its part in the store may say so"
    assert ledger.claim_finalize() is None
    assert ledger.claim_finalize("new") is None
    assert ledger.claim(W1) is None
    assert state(ledger, "new").version == 3
    assert later.claim_finalize("new") is not None
    later.forget("new")


def test_a_cancelled_job_leaves_nothing(ledger: Ledger, later: Ledger) -> None:
    accept(later, "new", 3)
    ledger.cancel("new")
    assert run(later, LATER) == [("new", -1)]


class TestARedisThatForgot:
    def test_is_recovered_for_each_version_by_those_who_read_it(
        self, ledger: Ledger, later: Ledger, redis_server
    ) -> None:
        accept(later, "new", 3)
        mine = claimed(later, LATER)
        redis_server.client.flushall()
        ledger.recovered()
        assert (ledger.needs_recover(), later.needs_recover()) == (False, True)
        assert beat(later, mine) == LeaseState.HELD, "what is in hand goes on"
        accept(later, "new", 3)
        later.recovered()
        assert (ledger.needs_recover(), later.needs_recover()) == (False, False)
        assert beat(later, mine) == LeaseState.HELD
        assert finish(later, mine) is False
        assert state(later, "new").done == 1
        later.forget("new")
        assert beat(later, mine) == LeaseState.LOST

    def test_one_that_restarts_later_wants_the_same_again(self, ledger: Ledger, later: Ledger, redis_server) -> None:
        later.recovered()
        assert not ledger.needs_recover()
        redis_server.client.set(keys.key(ledger.store_id, "run_id"), "of-another-run 2,3")
        ledger.recovered()
        assert (ledger.needs_recover(), later.needs_recover()) == (False, True)


class TestFewWhoReadAVersion:
    """While a fleet is upgraded, jobs of the later version are claimed by few: they fall behind the others."""

    @pytest.fixture
    def behind(self, ledger: Ledger, later: Ledger) -> Ledger:
        """What the later program has; its two jobs have had a claim each, the earlier one a hundred."""
        for created, (job, version) in enumerate([("new", 3), ("new-too", 3), ("old", 2)]):
            accept(later, job, version, batches=10_000, created=created, priority=int(job == "new-too"))
        assert {claimed(later, LATER).job for _ in range(3)} == {"new", "new-too", "old"}
        for _ in range(100):
            claimed(ledger)
        return later

    def test_a_job_that_enters_shares_with_those_of_its_version_whoever_claimed_last(
        self, ledger: Ledger, behind: Ledger
    ) -> None:
        claimed(behind, LATER)
        accept(ledger, "old-too", 2, batches=1_000, created=10)
        assert Counter(claimed(ledger).job for _ in range(20)) == {"old": 10, "old-too": 10}

    def test_what_they_missed_does_not_shut_out_the_others_once_all_read_it(self, behind: Ledger) -> None:
        shares = Counter(claimed(behind, LATER).job for _ in range(40))
        assert shares["old"] == pytest.approx(10, abs=1)
        assert shares["new"] == pytest.approx(10, abs=1)
        assert shares["new-too"] == pytest.approx(20, abs=1)

    def test_jobs_that_are_behind_share_by_weight(self, ledger: Ledger, behind: Ledger) -> None:
        shares: Counter[str] = Counter()
        for _ in range(60):
            for _ in range(9):
                assert claimed(ledger).job == "old"
            shares[claimed(behind, LATER).job] += 1
        assert shares["new"] == pytest.approx(20, abs=1)
        assert shares["new-too"] == pytest.approx(40, abs=1)

    @pytest.mark.parametrize("version", [2, 3])
    @pytest.mark.parametrize("caught_up", [False, True])
    def test_a_small_job_is_claimed_next(self, behind: Ledger, version: int, caught_up: bool) -> None:
        for _ in range(10 * caught_up):
            claimed(behind, LATER)
        accept(behind, "small", version, batches=1, created=10, priority=-5)
        assert "small" in {claimed(behind, LATER).job for _ in range(4)}, "at most one of each other comes before"

    def test_one_that_comes_back_is_neither_ahead_nor_behind(self, ledger: Ledger, behind: Ledger) -> None:
        ledger.pause("new")
        for _ in range(50):
            claimed(ledger)
            claimed(behind, LATER)
        ledger.resume("new")
        shares = Counter(claimed(behind, LATER).job for _ in range(40))
        assert shares["new"] == pytest.approx(10, abs=1)
        assert shares["old"] == pytest.approx(10, abs=1)


@contextmanager
def later_layout() -> Iterator[None]:
    """Within, this process is one of a release that keeps its state in another layout."""
    with patch.object(keys, "LAYOUT", 2):
        yield


class TestLayout:
    def test_workers_of_an_earlier_one_find_out_that_later_ones_have_taken_over(
        self, ledger: Ledger, redis_server
    ) -> None:
        with later_layout():
            later = Ledger.connect(redis_server.url, ledger.store_id, leads=True)
            assert later.needs_recover(), "it begins empty"
            later.close()
        said = r"holds the state of this store's jobs as a later release keeps it: upgrade promptmill here$"
        with pytest.raises(LayoutError, match=said):
            ledger.needs_recover()
        with pytest.raises(LayoutError, match=said):
            Ledger.connect(redis_server.url, ledger.store_id, leads=True)

    def test_neither_sees_the_jobs_of_the_other(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file("old", 1))
        with later_layout():
            later = Ledger.connect(redis_server.url, ledger.store_id, leads=True)
            later.accept(job_file("new", 1))
            assert run(later) == [("new", 0), ("new", -1)]
            later.close()
        assert run(ledger) == [("old", 0), ("old", -1)]

    def test_producers_follow_the_workers(self, ledger: Ledger, redis_server) -> None:
        with later_layout():
            with pytest.raises(LayoutError, match=r"as an earlier release keeps it: upgrade the workers first$"):
                Ledger.connect(redis_server.url, ledger.store_id)
            Ledger.connect(redis_server.url, ledger.store_id, leads=True).close()
            Ledger.connect(redis_server.url, ledger.store_id).close()

    def test_an_empty_server_is_anybodys(self, ledger: Ledger, redis_server) -> None:
        redis_server.client.flushall()
        with later_layout():
            Ledger.connect(redis_server.url, ledger.store_id).recovered()
        assert redis_server.client.get(keys.layout(ledger.store_id)) == "2"
        redis_server.client.flushall()
