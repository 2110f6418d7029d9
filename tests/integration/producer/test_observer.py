"""What the exporter sees of a real ledger, round after round."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from jobs.job_file import JobFile
from jobs.ledger import Ledger, WorkerInfo
from jobs.results import PartCounts
from jobs.spec import JobSpec, SamplingParams, Status
from producer.exporter.metrics import ExporterCollector, Known
from producer.exporter.observation import LISTED_JOBS, Observer
from tests.job_work import WHEN

WORKER = WorkerInfo(
    id="w1", model="served", fingerprint="f1", host="here", pid=1, device="cpu", dtype="float32", engine="fake",
    revision="r1", slots=4, version="0", started_at=0.0,
)  # fmt: skip


def accept(ledger: Ledger, job: str, model: str = "served", age_s: int = 0) -> None:
    spec = JobSpec(model=model, sampling=SamplingParams(), batch_size=4)
    created_at = WHEN - timedelta(seconds=age_s)
    sizes = {"rows": 10, "result_rows": 10, "batches": 3, "max_tokens_total": 2_560}
    ledger.accept(JobFile(id=job, stage=job, created_at=created_at, spec=spec, digest="0" * 64, **sizes))


def test_models_come_and_stay(ledger: Ledger) -> None:
    observer = Observer(["named"])
    assert list(observer.look(ledger).models) == ["named"]
    ledger.register(replace(WORKER, in_hand=1))
    accept(ledger, "waits", "lonely")
    accept(ledger, "runs")
    ledger.claim(WORKER)

    seen = observer.look(ledger)
    assert {name: (m.backlog, m.workers) for name, m in seen.models.items()} == {
        "lonely": (3, 0), "named": (0, 0), "served": (3, 1),
    }  # fmt: skip
    assert (seen.models["served"].slots, seen.models["served"].busy_slots) == (4, 1)

    ledger.unregister("w1")
    for job in ("waits", "runs"):
        ledger.forget(job)
    left = observer.look(ledger).models
    assert list(left) == ["lonely", "named", "served"]
    assert all((m.backlog, m.workers, m.jobs.total()) == (0, 0, 0) for m in left.values())


def test_jobs_that_ended_are_counted_until_they_are_forgotten(ledger: Ledger) -> None:
    observer = Observer()
    for job in ("one", "two"):
        accept(ledger, job)
    assert observer.look(ledger).models["served"].jobs == {Status.IN_PROGRESS: 2}
    ledger.fail("one", "its input is gone")
    ledger.finalized("two", Status.COMPLETED, PartCounts(completed=10), None)
    for _ in range(2):
        assert observer.look(ledger).models["served"].jobs == {Status.FAILED: 1, Status.COMPLETED: 1}
    ledger.forget("one")
    assert observer.look(ledger).models["served"].jobs == {Status.COMPLETED: 1}


def test_a_job_that_ends_in_the_middle_of_a_look_is_counted_once(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(ledger, "ends")
    ask_for_workers = ledger.workers

    def workers() -> list[WorkerInfo]:
        """Asked for between the live jobs and the ended ones."""
        ledger.finalized("ends", Status.COMPLETED, PartCounts(completed=10), None)
        return ask_for_workers()

    monkeypatch.setattr(ledger, "workers", workers)
    seen = Observer().look(ledger)
    served = seen.models["served"]
    assert (served.jobs, served.backlog, served.rows) == ({Status.COMPLETED: 1}, 0, 0)
    assert (seen.listed, seen.live_jobs) == ([], 0)


def test_only_the_oldest_jobs_have_series_of_their_own_but_all_are_counted(ledger: Ledger) -> None:
    for number in range(LISTED_JOBS + 3):
        accept(ledger, f"job-{number}", age_s=number)
    registry = CollectorRegistry()
    registry.register(ExporterCollector(Known(ledger=Observer().look(ledger))))
    text = generate_latest(registry).decode()
    assert text.count("promptmill_job_progress_age_seconds{") == LISTED_JOBS
    assert 'job_id="job-2"' not in text
    assert 'job_id="job-3"' in text
    assert "promptmill_unlisted_jobs 3.0" in text
    assert f'promptmill_backlog_batches{{model="served"}} {3.0 * (LISTED_JOBS + 3)}' in text
