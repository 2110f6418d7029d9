"""What the exporter makes of the states of jobs."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest

from jobs.ledger import JobState
from jobs.spec import Status
from producer.exporter.observation import ListedJob, Progress, backlog

JOB = JobState(
    id="job", status=Status.IN_PROGRESS, model="m", stage="s", priority=0, labels={}, created_at=0.0, started_at=None,
    ended_at=None, deadline=None, total=100, completed=40, failed=10, cancelled=0, expired=0, batches=10, done=5,
    running=2, prompt_tokens=0, completion_tokens=0, rows_per_s=0.0, tokens_per_s=0.0, running_tokens=50,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ({}, 5),
        ({"running": 0}, 5),
        ({"status": Status.PAUSED}, 2),
        ({"status": Status.PAUSED, "running": 0}, 0),
        ({"status": Status.CANCELLING}, 2),
        ({"status": Status.CANCELLING, "running": 0}, 1),
        ({"status": Status.FINALIZING, "done": 10, "running": 0}, 1),
    ],
)
def test_the_backlog_is_what_workers_are_needed_for(changes: dict[str, object], batches: int) -> None:
    assert backlog(replace(JOB, **changes)) == batches  # type: ignore[arg-type]


def test_the_rows_of_a_job_add_up_to_all_of_them() -> None:
    assert ListedJob(JOB, 0.0).rows == {"ok": 40, "error": 10, "cancelled": 0, "expired": 0, "waiting": 50}


@pytest.mark.parametrize(
    ("changes", "still_s"),
    [
        ({}, 60.0),
        ({"done": 6, "running_tokens": 0}, 0.0),
        ({"running_tokens": 51}, 0.0),
        ({"running_tokens": 49}, 60.0),
        ({"running": 0, "running_tokens": 0}, 60.0),
        ({"status": Status.CANCELLING}, 0.0),
        ({"status": Status.PAUSED}, None),
    ],
)
def test_a_job_comes_further_with_a_batch_or_with_more_tokens_than_it_had(
    changes: dict[str, object], still_s: float | None
) -> None:
    progress = Progress()
    with patch("producer.exporter.observation.time.monotonic", side_effect=[100.0, 160.0]):
        assert progress.look([JOB]) == {"job": 0.0}
        assert progress.look([replace(JOB, **changes)]).get("job") == still_s  # type: ignore[arg-type]


def test_a_batch_that_begins_again_and_again_comes_no_further() -> None:
    progress, tokens = Progress(), [0, 30, 60, 0, 30, 60, 0, 30, 59]
    with patch("producer.exporter.observation.time.monotonic", side_effect=range(0, 900, 100)):
        seen = [progress.look([replace(JOB, running_tokens=count)])["job"] for count in tokens]
    assert seen == [0, 0, 0, 100, 200, 300, 400, 500, 600]


def test_a_job_that_ended_is_forgotten() -> None:
    progress = Progress()
    with patch("producer.exporter.observation.time.monotonic", side_effect=[0.0, 50.0, 70.0]):
        progress.look([JOB])
        assert progress.look([]) == {}
        assert progress.look([JOB]) == {"job": 0.0}
