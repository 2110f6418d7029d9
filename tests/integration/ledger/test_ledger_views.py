"""What is shown of jobs."""

from __future__ import annotations

import pytest
from ledger_work import PART, ROWS, claimed, finish, job_file, let_time_pass, run, state, worker

from jobs.ledger import Beat, Ledger


class TestViews:
    def test_jobs_are_listed_newest_first_live_or_ended(self, ledger: Ledger) -> None:
        ledger.accept(job_file("b", batches=1, created=2))
        run(ledger)
        ledger.accept(job_file("a", created=1))
        ledger.accept(job_file("c", created=3))
        assert [job.id for job in ledger.jobs()] == ["c", "b", "a"]

    def test_more_jobs_than_one_call_takes_are_all_listed(self, ledger: Ledger) -> None:
        for index in range(501):
            ledger.accept(job_file(f"j{index}", created=index))
        assert [job.id for job in ledger.jobs()] == [f"j{index}" for index in reversed(range(501))]

    def test_running_rows_and_tokens_are_the_sums_of_the_heartbeats(self, ledger: Ledger) -> None:
        ledger.accept(job_file())
        one, two = claimed(ledger), claimed(ledger, worker("w|2"))
        ledger.heartbeat([Beat("job", one.batch, one.token, 3, 70), Beat("job", two.batch, two.token, 4, 80)])

        found = state(ledger)
        assert (found.running, found.running_rows, found.running_tokens) == (2, 7, 150)
        finish(ledger, one)
        assert (state(ledger).running_rows, state(ledger).completed) == (4, ROWS)

    def test_a_running_finalizer_is_no_running_batch(self, ledger: Ledger) -> None:
        ledger.accept(job_file(batches=1))
        finish(ledger, claimed(ledger))
        assert claimed(ledger).kind == "finalize"
        assert state(ledger).running == 0

    def test_claimable_counts_what_a_claim_could_take(self, ledger: Ledger) -> None:
        ledger.accept(job_file("a", batches=4))
        ledger.accept(job_file("b", batches=3, model="other"))
        assert (ledger.claimable("tiny"), ledger.claimable("other"), ledger.claimable("none")) == (4, 3, 0)
        mine = claimed(ledger)
        ledger.finish("a", 3, None, PART)
        assert ledger.claimable("tiny") == 2
        ledger.release("a", mine.batch, mine.token)
        assert ledger.claimable("tiny") == 3


class TestRate:
    def test_it_covers_the_recent_past_only(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file(batches=100))
        claim = claimed(ledger)
        rates = []
        for _ in range(12):
            let_time_pass(redis_server.client, ledger, "job", 10)
            finish(ledger, claim)
            claim = claimed(ledger)
            rates.append(state(ledger).rows_per_s)
        # Ten rows every ten seconds, and then four times that: old seconds must not count for ever.
        assert rates[-1] == pytest.approx(1.0, rel=0.35)
        for _ in range(24):
            let_time_pass(redis_server.client, ledger, "job", 2.5)
            finish(ledger, claim)
            claim = claimed(ledger)
        found = state(ledger)
        assert found.rows_per_s == pytest.approx(4.0, rel=0.35)
        assert found.tokens_per_s == pytest.approx(25 * found.rows_per_s, rel=0.01)

    def test_it_falls_to_zero_when_nothing_comes(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file())
        finish(ledger, claimed(ledger))
        assert state(ledger).rows_per_s > 0
        let_time_pass(redis_server.client, ledger, "job", 100)
        assert state(ledger).rows_per_s > 0
        let_time_pass(redis_server.client, ledger, "job", 21)
        assert state(ledger).rows_per_s == 0

    def test_a_long_pause_does_not_weigh_it_down(self, ledger: Ledger, redis_server) -> None:
        ledger.accept(job_file())
        finish(ledger, claimed(ledger))
        let_time_pass(redis_server.client, ledger, "job", 36_000)
        finish(ledger, claimed(ledger))
        assert state(ledger).rows_per_s == pytest.approx(ROWS / 60, rel=0.1)
