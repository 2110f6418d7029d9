"""Processes of two releases on one store and one Redis: jobs wait for those who read them, and nobody breaks them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.fault_work import assert_whole, submit
from tests.mill import Mill
from tests.patience import wait_until
from tests.redis_server import Server

pytestmark = pytest.mark.faults

PLUGIN = "ops.faults.later"
LATER_JOBS = {"PLUGIN": PLUGIN, "LATER_JOBS": "1"}
LATER_LAYOUT = {"PLUGIN": PLUGIN, "LATER_LAYOUT": "1"}
SMALL = ("--model", "tiny", "--max-tokens", "4", "--batch-size", "10")


@pytest.fixture
def mill(tmp_path: Path, server: Server) -> Iterator[Mill]:
    """A store of its own: what releases know of each other stays in it."""
    mill = Mill(tmp_path, server.url)
    yield mill
    mill.close()


def test_a_job_of_a_later_release_waits_for_its_workers_and_older_ones_go_on(mill: Mill, tiny: Path) -> None:
    (old,) = mill.workers("tiny", tiny, 1)
    later = mill.start("submit", mill.prompts("later", 40), *SMALL, "--job-id", "later", **LATER_JOBS)
    assert later.wait() == 0
    assert "promptmill 0.1.0) do not read jobs of this version" in later.said()
    assert_whole(mill, submit(mill, "before", rows=60), 60)

    refused = mill.call("status", "later")
    assert (refused.code, refused.out) == (3, "")
    assert refused.err == "error: job later is of version 3, this program reads 2: upgrade promptmill here\n"
    shown = {job["id"]: job for job in mill.call("list", "--json").ok().json}
    assert shown["later"]["workers"] == 0
    assert shown["later"]["reason"].startswith("its files are of version 3, which the live workers of 'tiny'")
    with mill.redis() as client:
        assert not list(client.scan_iter("*:job:later:*")), "nobody has ever claimed a batch of it"
        client.flushall()
    wait_until("the worker to look for jobs", lambda: "left alone: job later is of version 3" in old.said())

    new = mill.worker("tiny", tiny, **LATER_JOBS)
    mill.wait_for_workers([old, new])
    doctor = mill.call("doctor").out
    assert "1 x tiny of promptmill 0.1.0, 1 x tiny of promptmill 9.0.0" in doctor
    assert "this is promptmill 0.1.0" in doctor
    assert_whole(mill, "later", 40)
    old.send(signal.SIGTERM)
    assert old.wait() == 0
    assert old.said().count("job later is of version 3") == 1
    assert "ERROR" not in old.said()


def test_workers_that_keep_jobs_in_another_layout_take_over(mill: Mill, tiny: Path) -> None:
    (old,) = mill.workers("tiny", tiny, 1)
    job = submit(mill, "layout")
    mill.wait_for_rows(job, 40)
    refused = mill.start("status", job, **LATER_LAYOUT)
    assert refused.wait() == 3
    assert "as an earlier release keeps it: upgrade the workers first" in refused.said()

    mill.worker("tiny", tiny, **LATER_LAYOUT)
    assert old.wait() == 3
    assert "workers of a later release have taken over: draining" in old.said()
    assert_whole(mill, job)
    refused = mill.call("submit", mill.prompts("late", 3), *SMALL)
    assert refused.code == 3
    assert "as a later release keeps it: upgrade promptmill here" in refused.err
    assert mill.status(job)["status"] == "completed", "what has ended is read from the store alone"
