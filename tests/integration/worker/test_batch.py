"""One permit through a worker: claim, generate, commit, end; and everything that may come between."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from jobs import layout
from jobs.errors import RedisUnavailableError
from jobs.inputs import unrun_batch
from jobs.ledger import Finished, LeaseState, Release
from jobs.prompts import read_batch
from jobs.reconcile import Reconciler
from jobs.spec import SamplingParams, Status
from tests.mill import PATIENCE_S
from worker import batch as worker_batch
from worker import generate as worker_generate
from worker.batch import run_claim, run_permit
from worker.context import WorkerContext
from worker.engine.loop import EngineDied
from worker.engine.request import Request
from worker.heartbeat import Upkeep

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


def permits_of(bench: Bench) -> int:
    return bench.ledger.queue_length(bench.permits.queue_key("fake"))


def take_permits(bench: Bench) -> None:
    """As Celery does, in all slots of all workers."""
    bench.redis.delete(bench.permits.queue_key("fake"))


def test_one_permit_runs_all_batches_and_ends_the_job(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(10))
    run_permit(worker)

    assert bench.state(job).status is Status.COMPLETED
    assert [row["number"] for row in bench.rows(job)] == list(range(10))


def test_while_batches_remain_permits_wait_for_the_next_free_slots(bench: Bench, prompts: Prompts) -> None:
    worker = bench.worker()
    bench.submit(prompts(10))
    take_permits(bench)
    run_claim(worker)
    run_claim(worker)
    assert permits_of(bench) == 2, "two, so that their number doubles; a second claim leaves no more"
    take_permits(bench)
    run_claim(worker)

    assert permits_of(bench) == 1, "the one for the end of the job"


def test_a_claim_runs_one_batch(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(10))

    assert run_claim(worker)
    state = bench.state(job)
    assert (state.done, state.completed, state.running, state.batches) == (1, 4, 0, 3)
    assert bench.part(job, 0)["row_index"].to_pylist() == [0, 1, 2, 3]
    assert len(worker.leases) == 0


def test_the_last_batch_sends_the_permit_that_ends_the_job(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(10))
    for _ in range(2):
        run_claim(worker)
    take_permits(bench)
    run_claim(worker)
    assert bench.state(job).status is Status.FINALIZING
    assert permits_of(bench) == 1
    run_claim(worker)

    assert bench.state(job).status is Status.COMPLETED
    assert not run_claim(worker)


def test_a_permit_without_work_does_nothing(bench: Bench) -> None:
    run_permit(bench.worker())

    assert permits_of(bench) == 0


def test_a_draining_worker_claims_nothing(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    worker.draining.set()
    run_permit(worker)

    assert bench.state(job).done == bench.state(job).running == 0


def test_rows_with_settings_and_samples_of_their_own_share_a_batch(bench: Bench) -> None:
    rows = [{"prompt": "a", "n": 3, "temperature": 1.0}, {"prompt": "b", "max_tokens": 1}, {"prompt": "c", "seed": 7}]
    job = bench.submit(rows)
    bench.run(bench.worker(), job)
    found = bench.rows(job)

    assert [(row["row_index"], row["sample_index"]) for row in found] == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    assert len({row["text"] for row in found[:3]}) == 3
    assert found[3]["completion_tokens"] == 1
    assert found[4]["seed"] == 7
    assert {row["model_revision"] for row in found} == {"r1"}
    assert {row["worker"] for row in found} == {"w1"}


def test_a_row_that_fails_does_not_fail_its_batch(bench: Bench, prompts: Prompts) -> None:
    rows = [*prompts(3), {"prompt": "bad apple", "number": 3}, {"prompt": "x" * 600, "number": 4}]
    job = bench.submit(rows, batch_size=5)
    state = bench.run(bench.worker(fail_on="apple"), job)

    assert state.status is Status.COMPLETED
    assert [row["error_code"] for row in bench.rows(job)] == [None, None, None, "internal_error", "prompt_too_long"]
    assert state.errors == {"internal_error": 1, "prompt_too_long": 1}


def test_an_error_that_comes_back_every_time_makes_error_rows_and_not_an_endless_job(
    bench: Bench, prompts: Prompts
) -> None:
    worker, job = bench.worker(), bench.submit([{"prompt": "a", "n": 2, "k": "kept"}, {"prompt": "b", "k": "kept"}])

    def fail(*_: object) -> None:
        raise KeyError("nobody foresaw this")

    with patch.object(worker_generate, "encode", fail):
        for _ in range(worker_batch.MAX_FAILURES - 1):
            with pytest.raises(KeyError):
                run_claim(worker)
            assert bench.state(job).running == 0, "the lease was handed back at once"
        run_claim(worker)
    bench.run(worker, job)
    rows = bench.rows(job)

    assert [(row["row_index"], row["sample_index"], row["k"]) for row in rows] == [
        (0, 0, "kept"), (0, 1, "kept"), (1, 0, "kept")
    ]  # fmt: skip
    assert {row["error_code"] for row in rows} == {"internal_error"}
    assert "nobody foresaw this" in rows[0]["error_message"]
    assert rows[0]["attempt"] == worker_batch.MAX_FAILURES


class TestProcessesThatEnd:
    """An engine that died takes its process with it; each worker here is the next process."""

    MARKER = "ends engines"

    def crash(self, bench: Bench, times: int) -> None:
        """So many processes end."""
        for _ in range(times):
            with pytest.raises(EngineDied, match="CUDA error"):
                run_permit(bench.worker(die_on=self.MARKER))

    def test_before_a_row_is_known_to_be_why_none_is_blamed(self, bench: Bench) -> None:
        job = bench.submit([{"prompt": self.MARKER}, {"prompt": "fine"}])
        self.crash(bench, worker_generate.ROW_BY_ROW_AFTER + worker_generate.MAX_CRASHES - 1)
        state = bench.run(bench.worker("sound"), job)

        assert (state.completed, state.failed) == (2, 0)

    def test_the_row_that_ends_them_becomes_poison_and_no_other_is_harmed(self, bench: Bench, prompts: Prompts) -> None:
        rows = prompts(12)
        rows[6] = {**rows[6], "prompt": f"it {self.MARKER}", "n": 2}
        job, beside = bench.submit(rows), bench.submit(prompts(5))
        self.crash(bench, worker_generate.ROW_BY_ROW_AFTER + worker_generate.MAX_CRASHES)
        last = bench.worker(die_on=self.MARKER)
        state = bench.run(last, job)

        assert (state.status, state.completed, state.failed) == (Status.COMPLETED, 11, 2)
        assert state.errors == {"poison": 2}
        rows = bench.rows(job)
        assert [(row["row_index"], row["sample_index"]) for row in rows if row["status"] == "error"] == [(6, 0), (6, 1)]
        assert "3 worker processes ended" in next(row["error_message"] for row in rows if row["error_message"])
        assert bench.run(last, beside).completed == 5
        assert last.engine.failure is None

    def test_a_batch_that_has_cost_two_has_the_engine_to_itself(self, bench: Bench, prompts: Prompts) -> None:
        job = bench.submit(prompts(4))
        for _ in range(worker_generate.ALONE_AFTER):
            claim = bench.ledger.claim(bench.worker().info())
            assert claim is not None
            bench.ledger.release(claim.job, claim.batch, claim.token, Release.CRASHED)
        worker = bench.worker(tokens_per_second=200.0)
        own = worker.engine.submit(Request("other", [65], SamplingParams(max_tokens=60), 1))
        ended_first = []
        with patch.object(worker_generate, "encode", lambda *_: ended_first.append(own.done()) or [66]):
            bench.run(worker, job)

        assert ended_first == [True] * 4
        assert bench.state(job).completed == 4

    def test_a_crash_while_rows_run_one_by_one_does_not_begin_with_those_that_survived(
        self, bench: Bench, prompts: Prompts
    ) -> None:
        rows = prompts(8)
        rows[7] = {"prompt": self.MARKER, "number": 7}
        job = bench.submit(rows, batch_size=8)
        self.crash(bench, worker_generate.ROW_BY_ROW_AFTER + 1)
        last = bench.worker(die_on=self.MARKER)
        with pytest.raises(EngineDied):
            run_permit(last)

        assert last.engine.stats().rows == 0, "the suspect went first"
        self.crash(bench, 1)
        assert bench.run(bench.worker(die_on=self.MARKER), job).errors == {"poison": 1}


def test_a_part_that_is_in_the_store_is_finished_and_not_generated_again(bench: Bench, prompts: Prompts) -> None:
    first, job = bench.worker("first"), bench.submit(prompts(4))
    run_claim(first)
    bench.ledger.forget(job.id)
    bench.ledger.accept(bench.record(job))
    second = bench.worker("second")
    bench.run(second, job)

    assert second.engine.stats().rows == 0
    assert {row["worker"] for row in bench.rows(job)} == {"first"}


def test_of_two_that_commit_a_batch_the_first_wins_and_both_count_the_same(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    record = bench.record(job)
    original = worker_batch.generate

    def overtaken(*args: Any) -> bytes:
        content = original(*args)
        source = read_batch(bench.store.get(layout.input_batch(record.stage, 0)), record.spec.sampling)
        assert bench.store.put_if_absent(layout.part(record.stage, 0), unrun_batch(record, 0, source, "cancelled"))
        return content

    with patch.object(worker_batch, "generate", overtaken):
        run_claim(worker)

    assert (bench.state(job).completed, bench.state(job).cancelled) == (0, 4)
    assert bench.part(job, 0)["status"].to_pylist() == ["cancelled"] * 4


def test_a_part_that_cannot_be_read_is_set_aside_and_its_batch_run_again(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    stage = bench.record(job).stage
    bench.store.put_if_absent(layout.part(stage, 0), b"PAR1 and then nothing")
    run_claim(worker)

    assert bench.store.get(layout.part(stage, 0)) == b"PAR1 and then nothing"
    assert bench.store.exists(layout.damaged_part(stage, 0))
    assert bench.store.exists(layout.part(stage, 0, 1))
    assert bench.run(worker, job).completed == 4


def test_a_batch_whose_input_is_gone_becomes_input_lost_rows(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(6))
    bench.store.delete([layout.input_batch(bench.record(job).stage, 1)])
    state = bench.run(worker, job)

    assert (state.status, state.completed, state.errors) == (Status.COMPLETED, 4, {"input_lost": 2})
    assert [row["error_code"] for row in bench.rows(job)] == [None] * 4 + ["input_lost"] * 2


def test_a_ledger_that_forgot_the_job_meanwhile_learns_it_from_the_store(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(8))
    original = worker_batch.generate

    def forgotten(*args: Any) -> bytes:
        bench.ledger.forget(job.id)
        return original(*args)

    with patch.object(worker_batch, "generate", forgotten):
        run_claim(worker)

    assert (bench.state(job).done, bench.state(job).completed) == (1, 4)
    assert bench.run(worker, job).completed == 8


def test_a_redis_that_is_down_at_the_commit_is_told_when_it_is_back(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    finish, tries = worker.ledger.finish, iter([RedisUnavailableError("down")])

    def down_at_first(*args: Any) -> Finished:
        if error := next(tries, None):
            raise error
        return finish(*args)

    with patch.object(worker.ledger, "finish", down_at_first):
        assert run_claim(worker)
    assert (bench.state(job).done, bench.state(job).running) == (1, 0)


def test_a_redis_that_is_down_at_the_end_of_a_worker_costs_no_row(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))

    def down(*_: Any) -> Finished:
        worker.draining.set()
        raise RedisUnavailableError("down")

    with patch.object(worker.ledger, "finish", down):
        run_permit(worker)
    assert bench.state(job).done == 0
    worker.draining.clear()
    done = worker.engine.stats().rows

    assert bench.run(worker, job).completed == 4
    assert worker.engine.stats().rows == done, "what is in the store is not generated again"


# -- What the ledger takes away from a running batch.


class Running:
    """A permit that is being used on a thread, its batch in the engine."""

    def __init__(self, bench: Bench, rows: list[dict[str, Any]]) -> None:
        self.worker = bench.worker("slow", tokens_per_second=40.0)
        self.job = bench.submit(rows, batch_size=len(rows), max_tokens=20)
        self.upkeep = Upkeep(self.worker, Reconciler(bench.store, bench.ledger, bench.permits, "slow"))
        self._thread = threading.Thread(target=run_permit, args=(self.worker,))
        self._thread.start()
        self.requests: list[Request] = []
        while self.worker.engine.stats().rows < 1:
            self._thread.join(0.01)

    def beat(self) -> None:
        """A heartbeat, as its thread would send it."""
        self.upkeep.heartbeat.beat()

    def end(self) -> None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_cancelling_keeps_the_finished_rows_of_a_running_batch(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    running.job.cancel()
    running.beat()
    running.end()
    state = bench.run(bench.worker(), running.job)

    assert state.status is Status.CANCELLED
    assert state.completed >= 1
    assert state.cancelled >= 1
    rows = bench.rows(running.job)
    assert len(rows) == 12
    assert all((row["text"] is None) == (row["status"] == "cancelled") for row in rows)


def test_a_batch_that_another_worker_has_taken_is_dropped(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    other = bench.worker("other")
    lease = next(iter(running.worker.leases))
    bench.ledger.release(lease.claim.job, lease.claim.batch, lease.claim.token)
    run_claim(other)
    running.beat()
    running.end()

    assert lease.state is LeaseState.LOST
    assert set(bench.part(running.job, 0)["worker"].to_pylist()) == {"other"}
    assert bench.state(running.job).done == 1


def test_a_worker_whose_grace_is_over_hands_its_batch_back(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    running.worker.abandoned.set()
    running.end()

    assert (bench.state(running.job).running, bench.state(running.job).done) == (0, 0)
    assert bench.run(bench.worker("next"), running.job).completed == 12
    assert {row["attempt"] for row in bench.rows(running.job)} == {2}


def test_a_heartbeat_shows_what_is_in_hand(bench: Bench, prompts: Prompts) -> None:
    running = Running(bench, prompts(12))
    running.beat()
    state = bench.state(running.job)
    [listed] = bench.ledger.workers()

    assert state.running == 1
    assert (listed.id, listed.in_hand) == ("slow", 1)
    running.worker.abandoned.set()
    running.end()


def test_a_batch_that_was_handed_back_is_not_in_hand_during_the_pause(
    bench: Bench, prompts: Prompts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The heartbeats of the pause would report it, and hear that it is lost."""
    worker, in_hand = bench.worker(), []
    job = bench.submit(prompts(4))
    monkeypatch.setattr(WorkerContext, "back_off", lambda self: in_hand.append(len(self.leases)))
    (tmp_path / "store").rename(tmp_path / "away")
    run_claim(worker)
    (tmp_path / "away").rename(tmp_path / "store")
    assert in_hand == [0]
    assert bench.run(worker, job).status is Status.COMPLETED
