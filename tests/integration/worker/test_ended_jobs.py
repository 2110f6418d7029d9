"""What people ask of jobs that have ended, and that the ledger need not know any more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from jobs.errors import InputError

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
