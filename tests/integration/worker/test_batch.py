"""A claimed batch through a worker: generate, commit, tell the ledger; and everything that may come between."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from jobs import layout
from jobs.errors import RedisUnavailableError
from jobs.inputs import unrun_batch
from jobs.ledger import Finished
from jobs.prompts import read_batch
from jobs.spec import Status
from worker import batch as worker_batch
from worker import generate as worker_generate
from worker.claims import run_claim, run_permit

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


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
