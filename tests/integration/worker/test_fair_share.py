"""A ten-row job behind ten million rows: the real ledger, a worker's slots, and the engine that serves models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from jobs import layout
from jobs.job_file import JobFile
from jobs.ledger import Claim, WorkerInfo
from jobs.prompts import write_batch
from jobs.spec import JobSpec, SamplingParams
from producer import Job
from tests.integration.worker.conftest import Bench
from tests.job_work import WHEN, input_table
from tests.models import tiny_model
from tests.patience import wait_until
from worker.claims import run_permit
from worker.context import WorkerContext
from worker.engine.inflight import InflightEngine
from worker.engine.request import EngineLimits
from worker.models import load_model

BATCH, SMALL, SLOTS, MAX_ROWS, MAX_TOKENS = 256, 10, 4, 16, 8
MILLIONS = 10_000_000
#: Of the huge job's batches those that are staged: nobody gets further here.
STAGED = 6


@dataclass
class Mill:
    """A worker whose engine takes a step when the test says so."""

    bench: Bench
    worker: WorkerContext
    engine: InflightEngine
    #: The job of each claim, and of each row when it first entered a step, with the number of steps before.
    claims: list[tuple[str, int]] = field(default_factory=list)
    entered: list[tuple[str, int]] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        claim, next_step, known = self.bench.ledger.claim, self.engine.scheduler.next_step, set()

        def noted_claim(worker: WorkerInfo) -> Claim | None:
            found = claim(worker)
            if found is not None:
                self.claims.append((found.job, self.steps))
            return found

        def noted_step() -> list[Any]:
            chunks = next_step()
            self.entered += [(chunk.row.group, self.steps) for chunk in chunks if chunk.row.key not in known]
            known.update(chunk.row.key for chunk in chunks)
            return chunks

        self.bench.ledger.claim = noted_claim  # type: ignore[method-assign]
        self.engine.scheduler.next_step = noted_step  # type: ignore[method-assign]

    def step(self) -> None:
        """One step of the engine. A slot that finds room has its batch in the engine before the next."""
        self.engine.step()
        self.steps += 1
        self.wait_for_rows()

    def wait_for_rows(self) -> None:
        def there() -> bool:
            claimed = sum(BATCH if job == "huge" else SMALL for job, _ in self.claims)
            return not self.worker.has_room and self.engine.stats().rows + self.engine.rows_in_hand == claimed

        wait_until("the rows of claimed batches to fill the engine", there)

    def step_until(self, what: Callable[[], bool]) -> None:
        for _ in range(500):
            if what():
                return
            self.step()
        raise AssertionError(f"500 steps and still not there; claims: {self.claims}")


@pytest.fixture
def mill(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    loaded = load_model("fake", str(tiny_model("gpt2", tmp_path_factory.mktemp("gpt2"))), device="cpu")
    engine = InflightEngine(loaded.model, loaded.tokenizer, EngineLimits(MAX_ROWS, None, loaded.max_length))
    worker = bench.worker()
    worker.engine, worker.tokenizer = engine, loaded.tokenizer
    yield Mill(bench, worker, engine)
    torch.set_num_threads(threads)


@pytest.fixture
def slots(mill: Mill) -> Iterator[ThreadPoolExecutor]:
    """The worker's slots, each with a permit, as Celery would hand them out."""
    with ThreadPoolExecutor(SLOTS) as pool:
        running = [pool.submit(run_permit, mill.worker) for _ in range(SLOTS)]
        try:
            mill.wait_for_rows()
            yield pool
        finally:
            mill.worker.draining.set()
            mill.worker.abandoned.set()
            mill.engine.close()
    for slot in running:
        slot.result()


@pytest.fixture
def huge(bench: Bench) -> JobFile:
    """A job of ten million rows, accepted; only what will be claimed is staged."""
    record = JobFile(
        id="huge", stage="stage-huge", created_at=WHEN,
        spec=JobSpec(model="fake", sampling=SamplingParams(max_tokens=MAX_TOKENS), batch_size=BATCH),
        digest="0" * 64, rows=MILLIONS, result_rows=MILLIONS, batches=-(-MILLIONS // BATCH),
        max_tokens_total=MILLIONS * MAX_TOKENS,
    )  # fmt: skip
    for batch in range(STAGED):
        assert bench.store.put_if_absent(
            layout.input_batch(record.stage, batch), write_batch(input_table(batch * BATCH, BATCH))
        )
    assert bench.store.put_if_absent(layout.job_file(record.id), record.to_bytes())
    assert bench.ledger.accept(record)
    return record


@pytest.fixture
def small(bench: Bench, prompts: Callable[[int], list[dict[str, Any]]]) -> Callable[..., Job]:
    return lambda **flags: bench.submit(prompts(SMALL), batch_size=BATCH, max_tokens=MAX_TOKENS, **flags)


def test_a_ten_row_job_behind_ten_million_rows_starts_within_one_batch_time(
    mill: Mill, huge: JobFile, small: Callable[..., Job], request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("slots")
    # The first batch runs from beginning to end: that many steps are one batch time.
    mill.step_until(lambda: mill.engine.stats().rows >= BATCH)
    batch_steps = mill.steps
    # The second one is in the engine, all places are taken, and the other slots wait for room. Steps would not wait for
    # the part of the first to be on the disk.
    wait_until("the slot of the first batch to wait again", lambda: mill.worker.waiting == SLOTS - 1)
    mill.step_until(lambda: mill.engine.scheduler.running == MAX_ROWS)
    claims, steps = len(mill.claims), mill.steps

    job = small()
    mill.step_until(lambda: sum(group == job.id for group, _ in mill.entered) == SMALL)

    later = mill.claims[claims:]
    assert later[0][0] == job.id, "the next slot that is free claims the ten rows"
    entered = [(group, step) for group, step in mill.entered if step >= later[0][1]]
    groups = [group for group, _ in entered]
    assert groups[0] == job.id, "the next row that enters the engine is one of them"
    assert entered[0][1] - steps <= batch_steps
    last = len(groups) - groups[::-1].index(job.id)
    assert groups[:last].count(job.id) == SMALL
    assert groups[:last].count(huge.id) <= SMALL, "and they have every other place until the last of them has one"
