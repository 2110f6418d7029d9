"""A producer is killed while it submits: nothing was accepted, or all of it; the same command ends as one job."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from fault_work import assert_whole

from jobs import layout
from ops.faults import plugin
from tests.mill import Mill, Worker

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


def test_the_same_submit_twice_at_once_is_one_job(mill: Mill, worker: Worker) -> None:
    submit = command(mill, "twins")
    commands = [mill.start(*submit, name=f"twin{number}") for number in range(2)]
    assert [twin.wait() for twin in commands] == [0, 0]
    assert [twin.said().splitlines()[-1] for twin in commands] == ["twins", "twins"]
    assert_whole(mill, "twins", ROWS)
    assert len([stage for stage in mill.stages() if stage == mill.record("twins").stage]) == 1
