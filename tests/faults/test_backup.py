"""A store that was copied while a job ran is a backup, and a store can move: as docs/operations.md tells people."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from jobs.store import Store
from ops.faults.checker import Expected, check_job
from tests.faults.fault_work import assert_whole, submit
from tests.files import files_below
from tests.mill import Mill
from tests.patience import wait_until
from tests.redis_server import Server
from tests.s3_server import make_bucket, s3_server, variables

pytestmark = pytest.mark.faults

#: The order matters: a job whose record is in the copy had all of its input by then, a dataset with _SUCCESS its files.
IN_ORDER = ("_promptmill.json", "jobs", "data", "results")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Mill, Server]]:
    """A mill whose server can be lost."""
    server = Server(tmp_path / "redis").start()
    mill = Mill(tmp_path, server.url)
    yield mill, server
    mill.close()
    server.close()


def back_up(store: Path, backup: Path) -> None:
    backup.mkdir()
    for name in IN_ORDER:
        if (store / name).exists():
            done = subprocess.run(["cp", "-a", store / name, backup], capture_output=True, text=True, check=False)
            # A file that is being written has a # in its name, and another one when cp comes to it.
            assert [line for line in done.stderr.splitlines() if "#" not in line] == []


def test_a_copy_of_a_store_made_while_a_job_ran_is_all_that_has_to_be_kept(
    own: tuple[Mill, Server], tiny: Path, tmp_path: Path
) -> None:
    mill, server = own
    assert mill.call(
        "submit", mill.prompts("early", 20), "--model", "tiny", "--max-tokens", "4", "--job-id", "early"
    ).ok()
    (worker,) = mill.workers("tiny", tiny, 1)
    mill.wait_for("early", "completed")
    # They go when the job has ended already, and a copy would miss some that it has listed.
    wait_until("its parts to go", lambda: not any("parts" in file.parts for file in files_below(mill.store_path)))
    with mill.held(batch=8):
        job = submit(mill, "restored")
        mill.wait_for_rows(job, 60)
        back_up(mill.store_path, tmp_path / "backup")
        mill.wait_for_rows(job, 160)
        later = submit(mill, "later", 20)
        store_id = mill.store.id
        worker.close()
    server.close()
    shutil.rmtree(server.folder)
    shutil.rmtree(mill.store_path)
    (tmp_path / "backup").rename(mill.store_path)
    server.start()
    assert mill.store.id == store_id
    recovered = mill.call("recover", "--json").ok().json
    assert recovered["restored"] == [job]
    assert mill.status(job)["rows"]["completed"] >= 60, "what was done by the backup is not done again"
    assert mill.status("early")["status"] == "completed"
    assert mill.call("status", later).code == 2, "what came after the backup is lost"
    mill.workers("tiny", tiny, 1)
    assert_whole(mill, job)
    assert_whole(mill, "early", 20)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The URI of an empty place on an S3 server, of which commands and workers have the address and the keys."""
    with s3_server() as endpoint:
        for name, value in variables(endpoint).items():
            monkeypatch.setenv(name, value)
        make_bucket(endpoint, "moved")
        yield f"s3://moved/{tmp_path.name}"


def upload(folder: Path, uri: str) -> None:
    """As ``aws s3 cp --recursive`` and its like do."""
    name, _, prefix = uri.removeprefix("s3://").partition("/")
    client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT"])
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), name, f"{prefix}/{path.relative_to(folder)}")


def test_a_store_moves_to_s3_in_the_middle_of_a_job(
    own: tuple[Mill, Server], tiny: Path, tmp_path: Path, bucket: str
) -> None:
    mill, server = own
    (worker,) = mill.workers("tiny", tiny, 1)
    with mill.held(batch=5):
        job = submit(mill, "moving", 200)
        mill.wait_for_rows(job, 60)
        mill.call("pause", job).ok()
        worker.close()
    store_id = mill.store.id
    upload(mill.store_path, bucket)
    mill.store_path.rename(tmp_path / "old")

    moved = Mill(tmp_path / "moved", server.url, bucket)
    moved.folder.mkdir()
    try:
        assert Store.open(bucket).id == store_id
        assert moved.status(job)["status"] == "paused", "Redis goes on as it was: the store is the same one"
        moved.workers("tiny", tiny, 1)
        moved.call("resume", job).ok()
        done = moved.wait_for(job, "completed")
        assert done["results"] == f"{bucket}/results/job_id={job}"
        exported = moved.call("results", job, "--to", "all.jsonl").ok()
        assert "200 rows" in exported.err
        copy = tmp_path / "copy"
        for item in moved.store.list("results"):
            (copy / item.path).parent.mkdir(parents=True, exist_ok=True)
            (copy / item.path).write_bytes(moved.store.get(item.path))
        assert check_job(copy, Expected(job, 200)) == []
    finally:
        moved.close()
