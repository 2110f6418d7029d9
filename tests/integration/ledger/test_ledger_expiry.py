"""Leases whose owners fall silent or crash: heartbeats, expiry, revival, and who is blamed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest
from ledger_work import PART, W1, W2, beat, claimed, finish, job_file, job_keys, let_leases_expire, run

from jobs.ledger import Beat, LeaseState, Ledger, Release, keys


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


class TestExpiry:
    def test_a_lease_lasts_as_long_as_it_says(self, redis_server, ledger: Ledger) -> None:
        def until() -> float:
            return float(redis_server.client.zscore(keys.key(ledger.store_id, "leases"), "job:0"))

        ledger.accept(job_file())
        before = ledger.now()
        mine = claimed(ledger)
        assert before + ledger.lease_s <= until() <= ledger.now() + ledger.lease_s
        before = ledger.now()
        assert beat(ledger, mine) is LeaseState.HELD
        assert before + ledger.lease_s <= until() <= ledger.now() + ledger.lease_s
        assert ledger.sweep("s").returned == []

        short = Ledger.connect(redis_server.url, ledger.store_id, lease_s=0.2)
        assert beat(short, mine) is LeaseState.HELD
        time.sleep(0.25)
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
