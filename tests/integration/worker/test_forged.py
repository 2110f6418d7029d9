"""What somebody who can write to Redis, or to the store, makes workers and producers do: nothing but end that job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import layout
from jobs.deletion import delete_job
from jobs.errors import DamagedFileError
from jobs.job_file import JOB_VERSION
from jobs.ledger import keys
from jobs.records import read_job
from worker.claims import run_claim


def forge_claim(bench: Any, job: str, **fields: Any) -> None:
    """A live job of the model ``fake`` in Redis that the store may know nothing of."""
    name = bench.ledger.store_id
    forged = {"version": JOB_VERSION, "model": "fake",
              "status": "in_progress", "stage": "s", "priority": 0, "labels": "{}", "total": 4,
              "batches": 1, "cost": 1, "max_error_rate": 1, "cursor": 0, "pass": 0, "done": 0, "completed": 0,
              "failed": 0, "cancelled": 0, "expired": 0, "prompt_tokens": 0, "completion_tokens": 0, "created_at": 1,
              "member": f"0:{job}", **fields}  # fmt: skip
    bench.redis.hset(keys.key(name, "job", job), mapping=forged)
    bench.redis.zadd(keys.key(name, "live"), {job: 1})
    bench.redis.hsetnx(keys.key(name, "models"), "fake", 0)
    bench.redis.zadd(keys.key(name, "unpinned", str(JOB_VERSION), "fake"), {f"0:{job}": 0})


@pytest.mark.parametrize("job", ["../../outside", "a/b", "nobody-put-this", "x" * 80])
def test_a_forged_job_fails_and_the_worker_goes_on_with_others(bench: Any, prompts: Callable, job: str) -> None:
    forge_claim(bench, job)
    good = bench.submit(prompts(4))
    worker = bench.worker()
    for _ in range(4):
        run_claim(worker)

    assert bench.state(good).status == "completed"
    forged = bench.ledger.job(job)
    assert forged is not None
    assert forged.status == "failed"
    assert not run_claim(worker)


@pytest.mark.parametrize("cursor", [7, 99_999])
def test_a_batch_that_a_job_does_not_have_is_not_generated(bench: Any, prompts: Callable, cursor: int) -> None:
    job = bench.submit(prompts(4))
    bench.redis.hset(keys.key(bench.ledger.store_id, "job", job.id), mapping={"cursor": cursor, "batches": 100_000})
    run_claim(bench.worker())

    state = bench.state(job)
    assert (state.status, state.reason) == ("failed", f"it has 1 batches, and Redis names batch {cursor}")
    assert [item.path for item in bench.store.list("data") if "/parts/" in item.path] == []


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "../../outside"}, {"stage": "/etc"}, {"stage": ""}, {"stage": "a/b"}, {"stage": "."}, {"id": "../x"},
    ],
)  # fmt: skip
def test_a_forged_record_names_nothing_outside_of_its_stage(
    bench: Any, prompts: Callable, tmp_path: Path, change: dict[str, Any]
) -> None:
    outside = tmp_path / "outside" / "input"
    outside.mkdir(parents=True)
    job = bench.submit(prompts(4))
    path = bench.store.root / layout.job_file(job.id)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **change}))

    with pytest.raises(DamagedFileError):
        read_job(bench.store, job.id)
    run_claim(bench.worker())
    assert bench.state(job).status == "failed"
    delete_job(bench.store, job.id, bench.ledger.forget)
    assert outside.is_dir()


def test_a_forged_tombstone_removes_nothing_outside(bench: Any, prompts: Callable, tmp_path: Path) -> None:
    outside = tmp_path / "outside" / "input"
    outside.mkdir(parents=True)
    job = bench.submit(prompts(4))
    (bench.store.root / layout.job_file(job.id)).unlink()
    grave = bench.store.root / layout.tombstone_file(job.id)
    grave.write_text(json.dumps({"job": job.id, "stage": "../../outside"}))
    delete_job(bench.store, job.id, bench.ledger.forget)
    assert outside.is_dir()


@pytest.mark.parametrize(
    "fields", [{"total": "many"}, {"status": "great"}, {"labels": "{"}, {"retry": "[]"}, {"model": b"\xff"}]
)
def test_a_job_that_makes_no_sense_hides_no_other(bench: Any, prompts: Callable, fields: dict[str, Any]) -> None:
    good = bench.submit(prompts(4))
    forge_claim(bench, "nonsense", **fields)

    assert [job.id for job in bench.ledger.jobs()] == [good.id]
    assert [job.id for job in bench.client.jobs()] == [good.id]
    assert good.status().id == good.id
    bench.redis.delete(keys.key(bench.ledger.store_id, "job", "nonsense"))


def test_a_job_that_names_a_path_as_its_model_is_nobodys(bench: Any, prompts: Callable, tmp_path: Path) -> None:
    job = bench.client.submit(prompts(2), model=f"fake={tmp_path}")
    assert bench.record(job).spec.model == "fake"
    path = bench.client.submit(prompts(3), model=str(tmp_path))
    worker = bench.worker()
    bench.run(worker, job)
    assert bench.state(path).status == "in_progress"
    assert not run_claim(worker)
    assert bench.rows(job)[0]["model"] == "fake"
