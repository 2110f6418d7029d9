"""What people ask of jobs that have ended, and that the ledger need not know any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from jobs import layout
from jobs.ending import end_job
from jobs.errors import InputError
from tests.job_work import flipped
from worker.claims import run_claim

if TYPE_CHECKING:
    from .conftest import Bench


@pytest.mark.parametrize("forgotten", [False, True])
def test_one_that_has_ended_is_not_steered_and_says_so(
    bench: Bench, prompts: Callable[[int], list[Mapping[str, Any]]], forgotten: bool
) -> None:
    job = bench.submit(prompts(2))
    bench.run(bench.worker(), job)
    if forgotten:  # after seven days, or by a Redis that was emptied
        bench.ledger.forget(job.id)

    for steer, done in ((job.pause, "paused"), (job.resume, "resumed"), (lambda: job.set_priority(1), "given a prio")):
        with pytest.raises(InputError, match=f"job {job.id} is completed and can no longer be {done}"):
            steer()
    assert job.cancel().status == "completed"


def test_a_cancelled_job_whose_part_is_damaged_while_it_ends_is_ended_again_at_once(
    bench: Bench, prompts: Callable[[int], list[Mapping[str, Any]]]
) -> None:
    job = bench.submit(prompts(8))
    run_claim(bench.worker())
    bench.ledger.cancel(job.id)
    claim = bench.ledger.claim_finalize(job.id)
    assert claim is not None
    path, steps = layout.part(bench.record(job).stage, 0), iter(range(100))

    def alive() -> None:
        if next(steps) == 1:  # all parts have been read once
            content = bench.store.get(path)
            bench.store.delete([path])
            bench.store.put_if_absent(path, flipped(content, len(content) // 2))

    end_job(bench.store, bench.ledger, bench.permits, claim, alive)
    again = bench.ledger.claim_finalize(job.id)
    assert again is not None
    end_job(bench.store, bench.ledger, bench.permits, again, lambda: None)

    assert bench.state(job).status == "cancelled"
    assert [row["status"] for row in bench.rows(job)] == ["cancelled"] * 8
