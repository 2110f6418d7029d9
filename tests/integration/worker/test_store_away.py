"""A store that is away for a moment costs no job and no row; what is wrong for good ends the job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from jobs import ending, layout
from jobs.errors import StoreUnavailableError
from jobs.spec import Status
from producer import submit as producer_submit
from worker import batch as worker_batch
from worker.batch import run_claim

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_batch, "_BACK_OFF_S", 0.0)


def root(bench: Bench) -> Path:
    folder = bench.store.root
    assert folder is not None
    return folder


def test_a_store_that_is_not_mounted_for_a_moment_fails_no_job(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(8))
    away = root(bench).with_name("away")
    root(bench).rename(away)
    root(bench).mkdir()
    assert not run_claim(worker)
    assert bench.state(job).status is Status.IN_PROGRESS
    root(bench).rmdir()
    away.rename(root(bench))

    assert bench.run(worker, job).status is Status.COMPLETED
    assert {row["status"] for row in bench.rows(job)} == {"ok"}


def test_a_job_whose_record_is_gone_for_good_has_failed(bench: Bench, prompts: Prompts) -> None:
    worker, job = bench.worker(), bench.submit(prompts(8))
    bench.store.delete([layout.job_file(job.id)])
    run_claim(worker)

    assert bench.state(job).status is Status.FAILED


def test_a_plan_that_cannot_be_read_fails_the_job_instead_of_going_round_for_ever(
    bench: Bench, prompts: Prompts
) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    bench.store.put_if_absent(layout.plan_file(bench.record(job).stage), b'{"files": [{"first"')

    assert bench.run(worker, job, claims=5).status is Status.FAILED


def test_a_finalization_that_fails_in_unforeseen_ways_is_given_up_at_the_third_attempt(
    bench: Bench, prompts: Prompts
) -> None:
    worker, job = bench.worker(), bench.submit(prompts(4))
    run_claim(worker)
    with patch.object(ending, "finalize", side_effect=ZeroDivisionError("unforeseen")):
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run_claim(worker)
            assert bench.state(job).status is Status.FINALIZING
        run_claim(worker)

    state = bench.state(job)
    assert state.status is Status.FAILED
    assert "unforeseen" in (state.reason or "")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoreUnavailableError("away")])
def test_a_submit_that_breaks_off_after_its_acceptance_keeps_the_input(
    bench: Bench, prompts: Prompts, error: BaseException
) -> None:
    put = bench.store.__class__.put_if_absent

    def put_then_break(store: Any, path: str, content: bytes) -> bool:
        won = put(store, path, content)
        if layout.job_of_file(path) is not None:
            raise error
        return won

    with patch.object(bench.store.__class__, "put_if_absent", put_then_break), pytest.raises(type(error)):
        bench.submit(prompts(8))
    again = bench.submit(prompts(8))

    assert bench.run(bench.worker(), again).status is Status.COMPLETED
    assert {row["status"] for row in bench.rows(again)} == {"ok"}


def test_a_submit_that_breaks_off_before_its_acceptance_leaves_nothing(bench: Bench, prompts: Prompts) -> None:
    broken = patch.object(producer_submit.BatchBuilder, "digest", side_effect=KeyboardInterrupt)
    with broken, pytest.raises(KeyboardInterrupt):
        bench.submit(prompts(8))

    assert not list(bench.store.list("data"))
