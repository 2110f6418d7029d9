"""A worker without its process: the real ledger, store and permits around an engine that needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import redis

from jobs.job_file import JobFile
from jobs.ledger import JobState, Ledger, WorkerInfo
from jobs.permits import Permits, make_app
from jobs.records import read_job
from jobs.results import read_part
from jobs.settings import Settings
from jobs.store import Store
from producer import Client, Job
from producer.results import read_results
from worker.claims import run_claim
from worker.context import WorkerContext
from worker.engine.fake import FakeEngine
from worker.engine.request import EngineLimits


@dataclass
class Bench:
    """One store on one server, a client that submits, and workers that run permit by permit."""

    url: str
    store: Store
    ledger: Ledger
    permits: Permits
    client: Client
    redis: redis.Redis
    _engines: list[FakeEngine] = field(default_factory=list)

    def worker(self, name: str = "w1", **engine: Any) -> WorkerContext:
        """A worker of the model ``fake``; ``engine`` goes to FakeEngine."""
        fake = FakeEngine(EngineLimits(max_rows=16, max_length=engine.pop("max_length", 500)), **engine)
        fake.start()
        self._engines.append(fake)
        registration = WorkerInfo(
            id=name, model="fake", fingerprint="f1", host="here", pid=1, device="cpu", dtype="float32",
            engine="fake", revision="r1", slots=4, version="0", started_at=0.0,
        )  # fmt: skip
        settings = Settings(store=self.store.uri, redis_url=self.url, lease_s=60.0, sweep_s=0.5)
        tokenizer: Any = fake.tokenizer
        return WorkerContext(settings, self.store, self.ledger, self.permits, fake, tokenizer, registration)

    def submit(self, rows: list[Mapping[str, Any]], **flags: Any) -> Job:
        return self.client.submit(rows, model="fake", **{"batch_size": 4, "max_tokens": 5, **flags})

    def state(self, job: Job) -> JobState:
        state = self.ledger.job(job.id)
        assert state is not None
        return state

    def run(self, worker: WorkerContext, job: Job, claims: int = 50) -> JobState:
        """Claims until the job has ended; its last state."""
        for _ in range(claims):
            run_claim(worker)
            if self.state(job).status.ended:
                break
        return self.state(job)

    def record(self, job: Job) -> JobFile:
        return read_job(self.store, job.id)

    def rows(self, job: Job) -> list[dict[str, Any]]:
        return [row for batch in read_results(self.store, job.id) for row in batch.to_pylist()]

    def part(self, job: Job, batch: int) -> pa.Table:
        return read_part(self.store.get(f"data/{self.record(job).stage}/parts/part-{batch:05d}.parquet"))

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self.client.close()
        self.permits.close()
        self.ledger.close()


@pytest.fixture
def bench(redis_server: Any, tmp_path: Path) -> Iterator[Bench]:
    redis_server.client.flushall()
    store = Store.open(str(tmp_path / "store"), create=True)
    bench = Bench(
        url=redis_server.url,
        store=store,
        ledger=Ledger.connect(redis_server.url, store.id, lease_s=60.0, sweep_s=0.5),
        permits=Permits(make_app(redis_server.url, store.id), store.id),
        client=Client(redis_url=redis_server.producer_url, store=tmp_path / "store"),
        redis=redis_server.client,
    )
    yield bench
    bench.close()


@pytest.fixture
def prompts() -> Callable[[int], list[dict[str, Any]]]:
    return lambda count: [{"prompt": f"prompt {number}", "number": number} for number in range(count)]
