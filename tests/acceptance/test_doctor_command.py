"""What workers and doctor say of the machines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mill import Mill
from tests.redis_server import Server


def test_workers_lists_what_lives(mill: Mill) -> None:
    workers = mill.call("workers", "--json").ok().json

    assert {worker["model"] for worker in workers} - {"chatty"} == {"tiny"}  # some tests start another
    (worker,) = (worker for worker in workers if worker["model"] == "tiny")
    assert {"id", "device", "slots", "rows_per_s", "tokens_per_s", "in_hand"} <= set(worker)
    assert worker["pid"] == mill.processes[0].pid
    assert "tiny" in mill.call("workers").ok().out


def test_doctor_is_content_where_all_is_well(mill: Mill) -> None:
    done = mill.call("doctor").ok()

    assert "BAD" not in done.out
    assert "1 x tiny" in done.out


def test_doctor_names_what_jobs_that_stand_still_wait_for(mill: Mill) -> None:
    job = mill.call("submit", mill.prompts("unserved", 1), "--model", "unserved").ok().out.strip()
    mill.call("pause", job).ok()
    done = mill.call("doctor").ok()

    assert f"1 wait for 'unserved', which no live worker serves: {job}" in done.out
    assert "-> promptmill-worker start --model unserved=PATH_OR_ID" in done.out
    assert "-> promptmill resume JOB" in done.out
    assert mill.call("delete", job, "--yes").ok()


def test_doctor_says_that_the_disk_is_too_full_for_workers(mill: Mill) -> None:
    done = mill.call("doctor", PROMPTMILL_MIN_FREE_MB="1e9")

    assert done.code == 3
    assert "BAD  disk: " in done.out
    assert "-> make room: workers claim nothing" in done.out


def test_doctor_names_the_mend_when_redis_is_down(mill: Mill) -> None:
    done = mill.call("doctor", PROMPTMILL_REDIS_URL="redis://:hidden-word@127.0.0.1:1/0")

    assert done.code == 3
    assert "BAD  redis: Redis at 127.0.0.1:1 cannot be reached" in done.out
    assert "-> start Redis (" in done.out
    assert "set PROMPTMILL_REDIS_URL" in done.out
    assert "hidden-word" not in done.out + done.err


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "guarded", password="right-one").start()
    yield server
    server.close()


def test_doctor_does_not_show_a_wrong_password(mill: Mill, guarded: Server) -> None:
    done = mill.call("doctor", "--json", PROMPTMILL_REDIS_URL=f"redis://:wrong-one@127.0.0.1:{guarded.port}/0")

    assert done.code == 3
    assert [finding["ok"] for finding in done.json if finding["what"] == "redis"] == [False]
    assert "password" in done.out
    assert "wrong-one" not in done.out + done.err


def test_doctor_names_the_mend_of_a_redis_that_drops_keys(mill: Mill, guarded: Server) -> None:
    guarded.client.config_set("maxmemory-policy", "allkeys-lru")
    done = mill.call("doctor", PROMPTMILL_REDIS_URL=guarded.url)

    assert done.code == 3
    assert "CONFIG SET maxmemory-policy noeviction" in done.out
