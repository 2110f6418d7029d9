"""All rows of a job come from the same weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jobs.recover import recover_all
from jobs.spec import Status
from worker.claims import run_claim

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


def test_a_job_stays_with_its_weights_also_when_redis_has_forgotten_which(bench: Bench, prompts: Prompts) -> None:
    job = bench.submit(prompts(8))
    assert run_claim(bench.worker("first"))
    bench.redis.flushall()
    recover_all(bench.store, bench.ledger)
    other = bench.worker("other")
    other.registration = replace(other.registration, fingerprint="f2", revision="r2")

    assert not run_claim(other)
    assert bench.run(bench.worker("again"), job).status is Status.COMPLETED
    assert {row["model_revision"] for row in bench.rows(job)} == {"r1"}
