"""Jobs in the ledger: how they are listed, restored and steered."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from ledger_work import PART, ROWS, W1, claimed, finish, job_file, job_keys, run, state, worker

from jobs.errors import InputError, UnknownJobError
from jobs.ledger import Beat, Ledger
from jobs.results import PartCounts
from jobs.spec import Status


class TestAccept:
    def test_a_new_job_shows_what_its_file_says(self, ledger: Ledger) -> None:
        deadline = datetime(2027, 1, 1, tzinfo=UTC)
        job = job_file(priority=2, labels={"team": "a:b|c", "ü": "%s"}, deadline=deadline)

        assert ledger.accept(job)

        found = state(ledger)
        assert (found.status, found.model, found.stage, found.priority) == (Status.IN_PROGRESS, "tiny", "stage-job", 2)
        assert found.labels == {"team": "a:b|c", "ü": "%s"}
        assert (found.total, found.batches, found.done, found.running) == (40, 4, 0, 0)
        assert found.created_at == job.created_at.timestamp()
        assert found.deadline == deadline.timestamp()
        assert found.started_at is None
        assert found.ended_at is None
        assert found.errors == {}

    def test_the_second_time_changes_nothing(self, ledger: Ledger) -> None:
        assert ledger.accept(job_file())
        finish(ledger, claimed(ledger))
        before = state(ledger)

        assert not ledger.accept(job_file(priority=3))

        assert state(ledger).priority == before.priority
        assert state(ledger).done == 1

    def test_an_ended_job_is_not_listed_anew(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        run(ledger)

        assert not ledger.accept(job_file())
        assert state(ledger).status is Status.COMPLETED
        assert ledger.claim(W1) is None

    def test_an_unknown_job_is_none(self, ledger: Ledger) -> None:
        assert ledger.job("nobody") is None

    @pytest.mark.parametrize("model", ["org/name:rev", "a b", "100%s", "ünï"])
    def test_a_models_name_may_hold_any_character(self, ledger: Ledger, model: str) -> None:
        ledger.accept(job_file(batches=2, model=model))
        assert run(ledger, worker(model=model)) == [("job", 0), ("job", 1), ("job", -1)]


class TestRestore:
    def test_an_unknown_job_is_listed_with_its_parts_done(self, ledger: Ledger) -> None:
        failed = PartCounts(completed=7, failed=3, prompt_tokens=5, completion_tokens=6, errors={"poison": 3})

        ledger.restore(job_file(batches=4), {0: PART, 2: failed})

        found = state(ledger)
        assert (found.done, found.completed, found.failed) == (2, 17, 3)
        assert (found.prompt_tokens, found.completion_tokens) == (55, 206)
        assert found.errors == {"poison": 3}
        assert found.rows_per_s == 0
        assert found.started_at == found.created_at
        assert run(ledger) == [("job", 1), ("job", 3), ("job", -1)]

    def test_it_merges_and_never_counts_twice(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=5))
        finish(ledger, claimed(ledger))
        mine = claimed(ledger)
        returned = claimed(ledger)
        ledger.release("job", returned.batch, returned.token)
        ledger.pause("job")

        for _ in range(2):
            ledger.restore(job_file(batches=5), {0: PART, 2: PART, 3: PART})

        found = state(ledger)
        assert found.status is Status.PAUSED
        assert (found.done, found.completed, found.running) == (3, 3 * ROWS, 1)
        assert ledger.heartbeat([Beat("job", mine.batch, mine.token)]) == {("job", 1): "held"}
        ledger.resume("job")
        assert run(ledger) == [("job", 4)]

    def test_a_job_whose_parts_are_all_there_waits_for_its_finalizer(self, ledger: Ledger) -> None:
        ledger.restore(job_file(batches=3), {0: PART, 1: PART, 2: PART})

        assert state(ledger).status is Status.FINALIZING
        assert run(ledger) == [("job", -1)]

    def test_long_runs_of_done_batches_are_skipped_at_once(self, ledger: Ledger) -> None:
        done = {batch: PART for batch in range(3_000) if batch not in (0, 1_001, 2_999)}

        ledger.restore(job_file(batches=3_000), done)

        assert ledger.claimable("tiny") == 3
        assert run(ledger) == [("job", 0), ("job", 1_001), ("job", 2_999), ("job", -1)]

    def test_an_unknown_job_is_listed_for_the_weights_that_it_was_begun_with(self, ledger: Ledger) -> None:
        ledger.restore(job_file(batches=3), {0: PART}, "f2")

        assert state(ledger).fingerprint == "f2"
        assert ledger.claim(worker(fingerprint="f1")) is None
        assert run(ledger, worker(fingerprint="f2")) == [("job", 1), ("job", 2), ("job", -1)]

    def test_a_listed_job_that_nobody_began_is_pinned_too(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=2))
        ledger.restore(job_file(batches=2), {}, "f2")

        assert ledger.claim(worker(fingerprint="f1")) is None
        assert run(ledger, worker(fingerprint="f2")) == [("job", 0), ("job", 1), ("job", -1)]

    def test_it_never_moves_a_job_from_the_weights_that_it_has(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=2))
        claimed(ledger, worker(fingerprint="f1"))
        ledger.restore(job_file(batches=2), {}, "f2")

        assert state(ledger).fingerprint == "f1"
        assert ledger.claim(worker(fingerprint="f2")) is None
        assert claimed(ledger, worker(fingerprint="f1")).batch == 1

    def test_done_batches_can_be_asked_for(self, ledger: Ledger) -> None:
        assert ledger.done("job") == set()
        batches = {0, 7, 8, 63, 1_000, 2_999}
        ledger.restore(job_file(batches=3_000), dict.fromkeys(batches, PART))
        assert ledger.done("job") == batches

    def test_an_ended_job_stays_as_it_is(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=2))
        ledger.finalized("job", Status.CANCELLED, PartCounts(cancelled=20), None)
        ledger.restore(job_file(batches=2), {0: PART})
        assert (state(ledger).status, state(ledger).completed) == (Status.CANCELLED, 0)
        assert job_keys(redis_server.client, ledger, "job") == {"job:job"}

    def test_batches_that_the_job_does_not_have_are_ignored(self, ledger: Ledger) -> None:
        ledger.restore(job_file(batches=2), {7: PART})

        assert state(ledger).done == 0
        assert ledger.claimable("tiny") == 2


class TestPauseResumePriority:
    def test_a_paused_job_is_not_claimed_and_its_leases_go_on(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        mine = claimed(ledger)

        assert ledger.pause("job", "the disk is full") is Status.PAUSED

        assert ledger.claim(W1) is None
        assert ledger.claimable("tiny") == 0
        assert state(ledger).reason == "the disk is full"
        assert ledger.heartbeat([Beat("job", mine.batch, mine.token)]) == {("job", 0): "held"}
        finish(ledger, mine)
        assert state(ledger).done == 1

    def test_resume_goes_on_where_it_was(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=2))
        ledger.pause("job", "why")

        assert ledger.resume("job") is Status.IN_PROGRESS
        assert state(ledger).reason is None
        assert run(ledger) == [("job", 0), ("job", 1), ("job", -1)]

    def test_both_can_be_repeated(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        assert [ledger.pause("job", "first"), ledger.pause("job")] == [Status.PAUSED] * 2
        assert state(ledger).reason == "first"
        assert [ledger.resume("job"), ledger.resume("job")] == [Status.IN_PROGRESS] * 2

    def test_a_paused_jobs_last_running_batch_makes_it_final(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        mine = claimed(ledger)
        ledger.pause("job")

        assert finish(ledger, mine)
        assert run(ledger) == [("job", -1)]

    def test_a_priority_can_be_changed_until_the_end(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        assert ledger.priority("job", 5) is Status.IN_PROGRESS
        assert state(ledger).priority == 5
        run(ledger)
        with pytest.raises(InputError, match="job job is completed and can no longer be given a priority"):
            ledger.priority("job", 1)

    def test_a_priority_out_of_range_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(InputError, match="from -5 to 5"):
            ledger.priority("job", 6)

    def test_an_unknown_job_is_an_error_and_leaves_no_key(self, ledger: Ledger, redis_server) -> None:
        for call in (ledger.pause, ledger.resume, ledger.cancel, ledger.expire, lambda job: ledger.priority(job, 1)):
            with pytest.raises(UnknownJobError, match="no job nobody is known here"):
                call("nobody")
        ledger.fail("nobody", "reason")
        ledger.finalized("nobody", Status.COMPLETED, PART, None)
        ledger.release("nobody", 0, "token")
        ledger.forget("nobody")
        assert job_keys(redis_server.client, ledger, "nobody") == set()

    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_a_job_that_is_ending_cannot_be_paused_or_resumed(self, ledger: Ledger, verb: str) -> None:
        ledger.accept(job_file())
        ledger.cancel("job")
        with pytest.raises(InputError, match=f"job job is cancelling and can no longer be {verb}d"):
            getattr(ledger, verb)("job")


class TestErrorRate:
    FAILED = PartCounts(failed=90, completed=10, errors={"poison": 30, "out_of_memory": 60})

    def test_a_job_that_only_fails_pauses_itself_and_says_why(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=10))
        finish(ledger, claimed(ledger), self.FAILED)
        assert state(ledger).status is Status.IN_PROGRESS

        finish(ledger, claimed(ledger), self.FAILED)

        assert state(ledger).status is Status.PAUSED
        assert state(ledger).reason == (
            "180 of 200 rows failed, most often with out_of_memory; the limit is a rate of 0.5"
        )
        assert ledger.claim(W1) is None

    def test_after_resume_only_later_rows_are_judged(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=10))
        for _ in range(2):
            finish(ledger, claimed(ledger), self.FAILED)
        ledger.resume("job")

        finish(ledger, claimed(ledger), self.FAILED)
        assert state(ledger).status is Status.IN_PROGRESS
        finish(ledger, claimed(ledger), PartCounts(failed=100, errors={"numeric_error": 100}))
        assert state(ledger).status is Status.PAUSED
        assert state(ledger).reason == (
            "190 of 200 rows failed, most often with numeric_error; the limit is a rate of 0.5"
        )

    def test_a_limit_of_one_never_pauses(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=3, max_error_rate=1.0))
        for _ in range(2):
            finish(ledger, claimed(ledger), PartCounts(failed=500, errors={"poison": 500}))
        assert state(ledger).status is Status.IN_PROGRESS

    def test_a_rate_at_the_limit_does_not_pause(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=3))
        finish(ledger, claimed(ledger), PartCounts(failed=100, completed=100, errors={"poison": 100}))
        assert state(ledger).status is Status.IN_PROGRESS

    def test_cancelled_rows_are_not_failures(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=3))
        finish(ledger, claimed(ledger), PartCounts(failed=100, cancelled=400, errors={"poison": 100}))
        assert state(ledger).status is Status.IN_PROGRESS

    def test_a_stopping_job_is_not_paused(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=3, max_error_rate=0.0))
        first, _ = claimed(ledger), claimed(ledger)
        ledger.cancel("job")
        finish(ledger, first, PartCounts(failed=300, errors={"poison": 300}))
        assert state(ledger).status is Status.CANCELLING

    def test_the_last_batch_finalizes_instead(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=2))
        for _ in range(2):
            finish(ledger, claimed(ledger), self.FAILED)
        assert state(ledger).status is Status.FINALIZING
        assert state(ledger).reason is None
