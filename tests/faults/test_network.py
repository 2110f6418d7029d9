"""Connections to Redis are cut, silenced or slowed down in the middle of a job."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_work import assert_whole, submit

from ops.faults.proxy import Mode, Proxy
from tests.mill import Mill
from tests.processes import Worker
from tests.redis_server import Server

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(("127.0.0.1", server.port))
    yield proxy
    proxy.close()


@pytest.fixture(scope="module")
def worker(mill: Mill, server: Server, tiny: Path, proxy: Proxy) -> Worker:
    """A worker that reaches Redis through the proxy."""
    worker = mill.worker("tiny", tiny, PROMPTMILL_REDIS_URL=server.url_through(proxy.port))
    mill.wait_for_workers([worker])
    return worker


@pytest.mark.parametrize("mode", ["refuse", "cut", "slow", "silent"])
def test_a_worker_goes_on_when_its_connections_do(mill: Mill, worker: Worker, proxy: Proxy, mode: Mode) -> None:
    job = submit(mill, f"disturbed-{mode}")
    mill.wait_for_rows(job, 40)
    proxy.use(mode)
    time.sleep(3)
    proxy.use("pass")

    assert_whole(mill, job)
    after = submit(mill, f"after-{mode}", 20)
    assert_whole(mill, after, 20)
    assert worker.alive


@pytest.mark.parametrize("mode", ["refuse", "cut", "silent"])
def test_a_command_says_in_one_line_that_redis_cannot_be_reached(
    mill: Mill, server: Server, proxy: Proxy, mode: Mode
) -> None:
    source = mill.prompts("unreached", 10)
    proxy.use(mode)
    try:
        through = {"PROMPTMILL_REDIS_URL": server.url_through(proxy.port)}
        outcome = mill.call("submit", source, "--model", "tiny", **through)
    finally:
        proxy.use("pass")
        proxy.reset()
    assert outcome.code == 3
    assert outcome.out == ""
    [line] = outcome.err.strip().splitlines()
    assert line.startswith(f"error: Redis at 127.0.0.1:{proxy.port} ")
    assert "unreached" not in " ".join(mill.job_files())
