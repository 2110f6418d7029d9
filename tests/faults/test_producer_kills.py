"""A producer is killed while it submits or retries: nothing was accepted, or all; the same command ends as one job.

A deletion that is killed is completed by the same command.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from fault_work import assert_whole

from jobs import layout
from ops.faults import plugin
from tests.mill import Mill
from tests.processes import Worker

pytestmark = pytest.mark.faults

ROWS = 20


@pytest.fixture(scope="module")
def worker(mill: Mill, tiny: Path) -> Worker:
    return mill.workers("tiny", tiny, 1)[0]


def command(mill: Mill, name: str) -> tuple[str, ...]:
    rows = "".join(json.dumps({"prompt": f"{name} {i}", "number": i}) + "\n" for i in range(ROWS))
    flags = ("--model", "tiny", "--max-tokens", "4", "--batch-size", "5", "--job-id", name)
    return ("submit", mill.write(f"{name}.jsonl", rows), *flags)


@pytest.mark.parametrize("point", [*plugin.PRODUCER_POINTS, "before put input:3"])
def test_a_submit_that_is_killed_there_and_run_again_ends_as_one_job(mill: Mill, worker: Worker, point: str) -> None:
    name = point.replace(" ", "-").replace(":", "-")
    submit = command(mill, name)
    killed = mill.start(*submit, PLUGIN=plugin.__name__, FAULTS_KILL=point)
    assert killed.wait() == -signal.SIGKILL, killed.said()

    accepted = plugin.PRODUCER_POINTS.index(point.partition(":")[0]) > plugin.PRODUCER_POINTS.index("before put job")
    assert mill.store.exists(layout.job_file(name)) == accepted
    before = mill.job_files()
    assert mill.call(*submit).ok().out.strip() == name
    assert mill.job_files() == sorted({*before, f"{name}.json"})
    assert_whole(mill, name, ROWS)


#: Of a batch that is carried over whole, and of one with rows to generate.
RETRY_POINTS = (
    "after put part", "after put carried", "before put job", "after put job", "after restore", "after send",
)  # fmt: skip


@pytest.mark.parametrize("point", RETRY_POINTS)
def test_a_retry_that_is_killed_there_and_run_again_ends_as_one_job(mill: Mill, worker: Worker, point: str) -> None:
    name = f"retried-{point.replace(' ', '-')}"
    too_long = "the lamp is warm and quiet " * 60
    rows = [{"prompt": too_long if i in (7, 8, 16) else f"{name} {i}", "number": i} for i in range(ROWS)]
    source = mill.write(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--model", "tiny", "--max-tokens", "4", "--batch-size", "5", "--job-id", name, "--wait", "--allow-failed")
    mill.call("submit", source, *flags).ok()
    killed = mill.start("retry", name, PLUGIN=plugin.__name__, FAULTS_KILL=point)
    assert killed.wait() == -signal.SIGKILL, killed.said()

    accepted = RETRY_POINTS.index(point) > RETRY_POINTS.index("before put job")
    assert mill.store.exists(layout.job_file(f"{name}-r1")) == accepted
    done = mill.call("retry", name, "--wait", "--allow-failed").ok()
    assert done.out.strip() == f"{name}-r1"
    assert not mill.store.exists(layout.job_file(f"{name}-r2"))
    assert_whole(mill, f"{name}-r1", ROWS, errors=dict.fromkeys((7, 8, 16), "prompt_too_long"))
    parent, child = (mill.table(job).to_pylist() for job in (name, f"{name}-r1"))
    assert [new for old, new in zip(parent, child, strict=True) if old["status"] == "ok" and new != old] == []


@pytest.mark.parametrize("point", ["before delete", "after delete:4"])
def test_a_deletion_that_is_killed_there_is_completed_by_the_same_command(
    mill: Mill, worker: Worker, point: str
) -> None:
    name = f"deleted-{point.replace(' ', '-').replace(':', '-')}"
    mill.call(*command(mill, name), "--wait").ok()
    killed = mill.start("delete", name, "--yes", PLUGIN=plugin.__name__, FAULTS_KILL=point)
    assert killed.wait() == -signal.SIGKILL, killed.said()
    mill.call("delete", name, "--yes").ok()

    left = [path.relative_to(mill.store_path) for path in mill.store_path.rglob("*") if name in str(path)]
    assert [str(path) for path in left] == [layout.tombstone_file(name)]


def test_the_same_submit_twice_at_once_is_one_job(mill: Mill, worker: Worker) -> None:
    submit = command(mill, "twins")
    commands = [mill.start(*submit, name=f"twin{number}") for number in range(2)]
    assert [twin.wait() for twin in commands] == [0, 0]
    assert [twin.said().splitlines()[-1] for twin in commands] == ["twins", "twins"]
    assert_whole(mill, "twins", ROWS)
    assert len([stage for stage in mill.stages() if stage == mill.record("twins").stage]) == 1
