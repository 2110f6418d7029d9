"""Batches whose runs end processes: the row that is why becomes poison, and no other is harmed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from jobs.ledger import Release
from jobs.spec import SamplingParams, Status
from worker import generate as worker_generate
from worker.claims import run_permit
from worker.engine.loop import EngineDied
from worker.engine.request import Request

if TYPE_CHECKING:
    from .conftest import Bench

Prompts = Callable[[int], list[dict[str, Any]]]


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
