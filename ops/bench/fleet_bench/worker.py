"""A worker process as ``promptmill-worker start`` is one, but for its model: an engine that waits as for a GPU."""

from __future__ import annotations

import os
import time
from typing import Any

from pipeline_bench.records import ALIAS

from jobs.settings import Settings
from worker import app
from worker.engine.fake import FakeEngine
from worker.engine.request import Engine, EngineLimits
from worker.models import LoadedModel

#: Rows in one step of the engine.
STEP_ROWS = 64


class WaitingEngine(FakeEngine):
    """Makes up one token for each row, and takes the time for it that a device of ``rows_per_s`` would.

    What the host has to do for a step is part of its time, as it is where a device waits for its host.
    """

    def __init__(self, limits: EngineLimits, rows_per_s: float) -> None:
        super().__init__(limits)
        self._row_s = 1 / rows_per_s

    def _work(self) -> bool:
        with self.lock:
            rows = self._scheduler.next_batch()
        ready = time.monotonic() + len(rows) * self._row_s
        for row in rows:
            self._generate(row)
        time.sleep(max(ready - time.monotonic(), 0.0))
        return bool(rows)


def serve(rows_per_s: float, concurrency: int) -> int:
    """This process as a worker. Only what would load and run a model is replaced."""
    engine: Any = WaitingEngine(EngineLimits(max_rows=STEP_ROWS), rows_per_s)
    loaded = LoadedModel(
        name=ALIAS, source="fake", revision="fake", dtype="none", device="none", fingerprint="fake", model=None,
        tokenizer=engine.tokenizer, max_length=engine.limits.max_length,
    )  # fmt: skip

    def load_nothing(*_: object, **__: object) -> LoadedModel:
        return loaded

    def engine_that_waits(*_: object) -> tuple[Engine, str]:
        return engine, "fake"

    app.load_model = load_nothing
    app.engine_for = engine_that_waits
    options = app.WorkerOptions(ALIAS, "fake", concurrency=concurrency, parent_pid=os.getppid())
    return app.run_worker(Settings.load(), options)
