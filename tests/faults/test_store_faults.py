"""The store fills up, is read-only, goes away or loses bytes in the middle of a job."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fault_work import assert_whole, submit

from jobs import layout
from ops.faults.checker import Expected, check_job
from ops.faults.proxy import Mode, Proxy
from tests.mill import LONG_LEASE, Mill
from tests.patience import wait_until
from tests.redis_server import Server
from tests.s3_server import make_bucket, s3_server, variables

pytestmark = pytest.mark.faults


class Disk:
    """A disk of 1 MB in memory, mounted at ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        _mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))

    def remount(self, options: str) -> None:
        _mount("-o", f"remount,{options}", str(self.folder))

    def fill(self) -> None:
        with (self.folder / "ballast").open("ab", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(b"x" * 4096)
                except OSError:
                    return

    def empty(self) -> None:
        (self.folder / "ballast").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(mill: Mill) -> Iterator[Disk]:
    try:
        disk = Disk(mill.store_path)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small disk")
    yield disk
    for process in mill.processes:
        process.close()
    disk.close()


@pytest.fixture
def mill(tmp_path: Path, server: Server) -> Iterator[Mill]:
    mill = Mill(tmp_path / "mill", server.url)
    mill.folder.mkdir()
    yield mill
    mill.close()


NO_LIMIT = {"PROMPTMILL_MIN_FREE_MB": "0"}


@pytest.mark.parametrize(
    ("away", "back"),
    [
        pytest.param(Disk.fill, Disk.empty, id="full"),
        pytest.param(lambda disk: disk.remount("ro"), lambda disk: disk.remount("rw"), id="read-only"),
    ],
)
def test_a_disk_that_takes_nothing_for_a_while_costs_no_row_and_no_second_run(
    mill: Mill, tiny: Path, disk: Disk, away: Callable[[Disk], None], back: Callable[[Disk], None]
) -> None:
    with mill.held(batch=2):
        job = submit(mill, "waits", 200)
        worker = mill.worker("tiny", tiny, **NO_LIMIT, **LONG_LEASE)
        mill.wait_for_rows(job, 40)
        away(disk)
    wait_until("a part to wait", lambda: "waits to be committed" in worker.said())
    time.sleep(2)
    back(disk)
    assert_whole(mill, job, 200)
    assert worker.alive
    assert set(mill.table(job)["attempt"].to_pylist()) == {1}


def test_work_waits_until_the_disk_has_room_for_it(mill: Mill, tiny: Path, disk: Disk) -> None:
    job = submit(mill, "roomless", 40)
    worker = mill.worker("tiny", tiny)
    wait_until("the worker to say so", lambda: "no more claims: the disk of" in worker.said())
    assert mill.status(job)["batches"] == {"total": 2, "done": 0, "running": 0}
    disk.remount("size=1g")
    assert_whole(mill, job, 40)


def test_a_submit_that_finds_the_disk_full_accepts_nothing_and_leaves_nothing(mill: Mill, disk: Disk) -> None:
    with mill.connection():
        disk.fill()
    done = mill.call("submit", mill.prompts("many", 2_000), "--model", "tiny")
    assert (done.code, done.out) == (3, "")
    [line] = done.err.strip().splitlines()
    assert "No space left on device" in line
    disk.empty()
    assert (mill.job_files(), mill.stages()) == ([], [])


def test_parts_that_lose_bits_or_their_end_are_set_aside_said_and_generated_again(mill: Mill, tiny: Path) -> None:
    with mill.held(batch=4):
        job = submit(mill, "bits", 400)
        worker = mill.worker("tiny", tiny)
        mill.wait_for_rows(job, 80)
        mill.call("pause", job).ok()
    wait_until("what is claimed to end", lambda: not mill.status(job)["batches"]["running"])
    stage = mill.record(job).stage
    flipped, cut, swapped = (mill.store_path / layout.part(stage, batch) for batch in range(3))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-100])
    swapped.write_bytes((mill.store_path / layout.part(stage, 3)).read_bytes())
    mill.call("resume", job).ok()

    assert_whole(mill, job, 400)
    assert "the parts of 3 finished batches are gone or damaged: they are generated again" in worker.said()
    assert sorted(path.name for path in flipped.parent.glob("*.bad-0")) == [f"part-0000{i}.bad-0" for i in range(3)]
    assert flipped.read_bytes() == content


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[tuple[str, Proxy]]:
    """The URI of an empty store on an S3 server behind a proxy."""
    with s3_server() as endpoint:
        address = urlsplit(endpoint)
        proxy = Proxy((str(address.hostname), int(address.port or 0)))
        for name, value in variables(f"http://127.0.0.1:{proxy.port}").items():
            monkeypatch.setenv(name, value)
        make_bucket(endpoint, "mill")
        yield f"s3://mill/{tmp_path.name}", proxy
        proxy.close()


@pytest.mark.parametrize("mode", ["cut", "refuse"])
def test_the_whole_way_over_s3_with_connections_that_break(
    tiny: Path, server: Server, tmp_path: Path, bucket: tuple[str, Proxy], mode: Mode
) -> None:
    uri, proxy = bucket
    mill = Mill(tmp_path, server.url, uri)
    try:
        job = submit(mill, "remote", 200)
        worker = mill.worker("tiny", tiny)
        mill.wait_for_rows(job, 40)
        proxy.use(mode)
        time.sleep(2)
        proxy.use("pass")
        mill.wait_for(job, "completed")
        assert worker.alive
        copy = tmp_path / "copy"
        for item in mill.store.list("results"):
            (copy / item.path).parent.mkdir(parents=True, exist_ok=True)
            (copy / item.path).write_bytes(mill.store.get(item.path))
        assert check_job(copy, Expected(job, 200)) == []
        # They go when the job has ended already.
        parts = f"data/{mill.record(job).stage}/parts"
        wait_until("its parts to go", lambda: not list(mill.store.list(parts)))
    finally:
        mill.close()
