"""How jobs end: stopped, finalized by one worker at a time, failed, forgotten."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from ledger_work import PART, W1, W2, beat, claimed, finish, job_file, job_keys, let_leases_expire, run, state, worker

from jobs.ledger import Beat, LeaseState, Ledger, keys
from jobs.results import PartCounts
from jobs.spec import Status


class TestStopping:
    @pytest.mark.parametrize(("verb", "ending"), [("cancel", Status.CANCELLED), ("expire", Status.EXPIRED)])
    @pytest.mark.parametrize("paused", [False, True])
    def test_a_job_that_nobody_runs_goes_straight_to_its_finalizer(
        self, ledger: Ledger, verb: str, ending: Status, paused: bool
    ) -> None:
        ledger.accept(job_file(deadline=datetime(2020, 1, 1, tzinfo=UTC)))
        if paused:
            ledger.pause("job")

        assert getattr(ledger, verb)("job") is Status.CANCELLING

        assert ledger.claimable("tiny") == 0
        assert ledger.sweep("s").expired == []
        claim = claimed(ledger)
        assert (claim.kind, claim.batch, claim.ending) == ("finalize", -1, ending)
        ledger.finalized("job", claim.ending, PartCounts(cancelled=40), claim.token)
        assert state(ledger).status is ending

    @pytest.mark.parametrize(("verb", "verdict"), [("cancel", "cancelled"), ("expire", "expired")])
    def test_owners_learn_it_and_their_last_part_frees_the_finalizer(
        self, ledger: Ledger, verb: str, verdict: str
    ) -> None:
        ledger.accept(job_file())
        first, second = claimed(ledger), claimed(ledger)
        getattr(ledger, verb)("job")

        assert ledger.claim(W1) is None
        beats = [Beat("job", 0, first.token), Beat("job", 1, second.token)]
        assert ledger.heartbeat(beats) == {("job", 0): verdict, ("job", 1): verdict}
        assert not finish(ledger, first, PartCounts(completed=3, cancelled=7))
        assert finish(ledger, second, PartCounts(completed=1, cancelled=9))
        assert claimed(ledger).ending == verdict

    def test_a_released_lease_of_a_stopping_job_frees_the_finalizer_too(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)
        ledger.cancel("job")
        ledger.release("job", mine.batch, mine.token)
        assert claimed(ledger).kind == "finalize"

    def test_the_first_wish_decides_and_repeats_are_harmless(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        assert [ledger.cancel("job"), ledger.expire("job"), ledger.cancel("job")] == [Status.CANCELLING] * 3
        assert claimed(ledger).ending is Status.CANCELLED
        assert ledger.cancel("job") is Status.CANCELLING
        assert ledger.claim(W1) is None

    def test_a_job_with_all_batches_done_is_past_cancelling(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        finish(ledger, claimed(ledger))
        assert ledger.cancel("job") is Status.FINALIZING
        assert claimed(ledger).ending is Status.COMPLETED

    def test_an_ended_job_stays_as_it_is(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        run(ledger)
        assert ledger.cancel("job") is Status.COMPLETED
        assert ledger.expire("job") is Status.COMPLETED

    def test_a_cancelled_job_whose_batches_all_finish_still_ends_as_cancelled(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        ledger.cancel("job")
        assert finish(ledger, mine)
        assert claimed(ledger).ending is Status.CANCELLED


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


class TestEnding:
    def test_a_summary_with_a_ttl_is_all_that_remains(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=3, labels={"a": "b"}, deadline=datetime(2030, 1, 1, tzinfo=UTC)))
        released = claimed(ledger)
        ledger.release("job", released.batch, released.token)
        for _ in range(3):
            finish(ledger, claimed(ledger), PartCounts(completed=9, failed=1, errors={"poison": 1}))
        claim = claimed(ledger)
        total = PartCounts(
            completed=27, failed=3, prompt_tokens=11, completion_tokens=12, errors={"poison": 2, "empty_prompt": 1}
        )

        ledger.finalized("job", claim.ending, total, claim.token)

        found = state(ledger)
        assert (found.status, found.completed, found.failed, found.done) == (Status.COMPLETED, 27, 3, 3)
        assert (found.prompt_tokens, found.completion_tokens) == (11, 12)
        assert found.errors == {"poison": 2, "empty_prompt": 1}
        assert found.labels == {"a": "b"}
        assert (found.rows_per_s, found.running) == (0, 0)
        assert found.started_at is not None
        assert found.ended_at is not None
        assert found.ended_at >= found.started_at
        assert job_keys(redis_server.client, ledger, "job") == {"job:job"}
        week = 7 * 86_400
        assert week - 60 < redis_server.client.ttl(keys.key(ledger.store_id, "job", "job")) <= week
        assert redis_server.client.keys("*leases*") == []
        assert redis_server.client.keys("*deadlines*") == []

    def test_the_first_end_is_the_end(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        run(ledger)
        ledger.finalized("job", Status.CANCELLED, PartCounts(cancelled=1), None)
        ledger.fail("job", "too late")
        assert state(ledger).status is Status.COMPLETED
        assert state(ledger).reason is None

    def test_anyone_may_say_that_the_dataset_is_whole(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)
        ledger.finalized("job", Status.COMPLETED, PartCounts(completed=40), None)
        assert state(ledger).status is Status.COMPLETED
        assert ledger.heartbeat([Beat("job", 0, mine.token)]) == {("job", 0): "lost"}
        assert not ledger.finish("job", 0, mine.token, PART).first
        assert ledger.claim(W1) is None

    def test_a_failed_job_keeps_its_counts_and_says_why(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file())
        finish(ledger, claimed(ledger), PartCounts(completed=9, failed=1, errors={"poison": 1}))
        claimed(ledger)

        ledger.fail("job", "its job file cannot be read")

        found = state(ledger)
        assert (found.status, found.reason) == (Status.FAILED, "its job file cannot be read")
        assert (found.completed, found.failed, found.errors) == (9, 1, {"poison": 1})
        assert job_keys(redis_server.client, ledger, "job") == {"job:job"}
        assert ledger.claim(W1) is None

    def test_a_failed_job_without_errors_shows_none(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        ledger.fail("job", "reason")
        assert state(ledger).errors == {}

    def test_a_forgotten_job_leaves_nothing(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file("live", deadline=datetime(2030, 1, 1, tzinfo=UTC)))
        claimed(ledger)
        ledger.accept(job_file("ended", batches=1, model="other"))
        run(ledger, worker(model="other"))

        ledger.forget("live")
        ledger.forget("ended")

        assert ledger.jobs() == []
        left = set(redis_server.client.keys(keys.prefix(ledger.store_id) + "*"))
        at_rest = {keys.key(ledger.store_id, "epoch"), keys.key(ledger.store_id, "run_id")}
        assert left == {*at_rest, keys.layout(ledger.store_id)}
