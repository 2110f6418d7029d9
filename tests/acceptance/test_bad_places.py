"""Stores and Redis servers that cannot be used: exit code 3, one line, nothing enqueued; the command as installed."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.store import Store
from tests.mill import Mill
from tests.outcome import Outcome
from tests.patience import wait_until
from tests.redis_server import Server
from tests.redis_users import refused
from tests.refusals import GOOD, assert_refused, submit


def test_a_store_that_cannot_be_written_exits_3(idle: Mill) -> None:
    file = idle.write("a-file", b"")
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_STORE=f"{file}/store")

    assert_refused(idle, done, "a-file/store", code=3)


def test_a_store_without_write_permission_exits_3(idle: Mill) -> None:
    folder = idle.folder / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")

    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_STORE=str(folder)), "locked", code=3)


def test_a_folder_that_belongs_to_something_else_exits_3_and_stays_as_it_is(idle: Mill) -> None:
    other = idle.folder / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"meow")
    done = submit(idle, idle.write("good.jsonl", GOOD), "--store", str(other))

    assert_refused(idle, done, str(other), "belongs to something else", code=3)
    assert [path.name for path in other.iterdir()] == ["cat.jpg"]


def test_a_store_of_another_format_exits_3(idle: Mill) -> None:
    idle.store_path.mkdir()
    (idle.store_path / "_promptmill.json").write_text('{"store_id": "x", "version": 99}')

    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD)), "format 99", code=3)


@pytest.mark.parametrize("command", ["submit", "run", "list", "doctor"])
def test_no_command_works_on_another_store_than_the_one_that_has_to_be_there(idle: Mill, command: str) -> None:
    there = str(idle.folder / "there")
    wanted = Store.open(there, create=True).id
    shown = idle.call("doctor", "--json", PROMPTMILL_STORE=there, PROMPTMILL_STORE_ID=wanted).ok().json
    assert {finding["what"]: finding["found"] for finding in shown}["store id"] == wanted
    source = [idle.write("good.jsonl", GOOD), "--model", "gpt2"] if command in ("submit", "run") else []

    done = idle.call(command, *source, PROMPTMILL_STORE_ID=wanted)

    assert done.code == 3
    assert f"{idle.store_path}: the one with the id {wanted} has to be there" in done.out + done.err
    assert "Traceback" not in done.err
    assert not idle.store_path.exists()


def test_redis_down_exits_3_and_says_where_it_was_looked_for(idle: Mill) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL="redis://127.0.0.1:1/0")

    assert_refused(idle, done, "Redis at 127.0.0.1:1", code=3)


def test_a_run_with_a_login_that_may_not_take_work_exits_3_before_anything_is_accepted(
    idle: Mill, server: Server, tiny: Path
) -> None:
    done = idle.call("run", idle.write("good.jsonl", GOOD), "--model", f"x={tiny}")

    assert_refused(idle, done, "does not let this user take work: workers log in as promptmill-worker", code=3)
    assert refused(server.client) == ["promptmill-producer: command brpop in toplevel"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "guarded", password="right-one").start()
    yield server
    server.close()


def test_a_wrong_password_exits_3_and_is_not_shown(idle: Mill, guarded: Server) -> None:
    for password in (":wrong-one@", ""):
        url = f"redis://{password}127.0.0.1:{guarded.port}/0"
        done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL=url)

        assert_refused(idle, done, f"127.0.0.1:{guarded.port}", "password", code=3)
        assert "wrong-one" not in done.err


def test_a_store_beside_others_in_one_redis_is_told_of_them_where_nobody_serves_it(idle: Mill, mill: Mill) -> None:
    """Producer and workers that look at different stores see nothing of each other."""
    done = submit(idle, idle.write("good.jsonl", GOOD)).ok()
    assert "those of other stores do not see it, and this Redis also serves " in done.err
    assert str(mill.store_path) in done.err
    listed = idle.call("workers").ok()
    assert listed.err.startswith(f"no live workers of {idle.store_path}; ")
    assert str(mill.store_path) in listed.err


def test_a_redis_without_memory_exits_3_and_nothing_is_accepted(idle: Mill, guarded: Server) -> None:
    guarded.client.config_set("maxmemory", 1)
    done = submit(idle, idle.write("good.jsonl", GOOD), PROMPTMILL_REDIS_URL=guarded.url)

    assert_refused(idle, done, "out of memory", code=3)


@pytest.mark.parametrize(
    ("flag", "value", "said"),
    [
        ("--redis-url", "localhost:6379", "redis://"),
        ("--redis-url", "redis://host:notaport/0", "redis://"),
        ("--redis-url", "http://host", "redis://"),
        ("--redis-url", "redis://\udcff/0", "redis://"),
        ("--store", "ftp://host", "unknown scheme 'ftp'"),
        ("--store", "a\0b", "NUL"),
        ("--store", "\udcff", "not UTF-8"),
    ],
)
def test_an_address_that_is_none_exits_2(idle: Mill, flag: str, value: str, said: str) -> None:
    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD), flag, value), said)


def test_a_redis_without_that_database_exits_3(idle: Mill) -> None:
    url = idle.redis_url.removesuffix("0") + "77777"

    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD), "--redis-url", url), "no database", code=3)


def test_settings_that_are_not_utf_8_are_told(idle: Mill) -> None:
    idle.write(".env", b"\xff\xfe\0")

    assert_refused(idle, submit(idle, idle.write("good.jsonl", GOOD)), ".env")


@pytest.mark.parametrize("content", [b'{"store_id', b"[]", b"\xff\0", b'{"version": 1}'])
def test_a_store_whose_record_is_damaged_exits_3(idle: Mill, content: bytes) -> None:
    idle.store_path.mkdir()
    (idle.store_path / "_promptmill.json").write_bytes(content)
    done = submit(idle, idle.write("good.jsonl", GOOD))

    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert "is not one of Promptmill's" in done.err


def test_a_disk_without_room_to_unpack_a_source_is_told(idle: Mill) -> None:
    path = idle.write("x.parquet.gz", gzip.compress(b"0" * 100_000))
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (50_000, 50_000)); "
    script = (
        f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); {limit}from producer.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "check", path], env=idle.environment, capture_output=True, text=True, check=False
    )

    assert_refused(idle, Outcome(done.returncode, done.stdout, done.stderr), path, "TMPDIR")


def test_no_live_worker_is_a_warning_and_the_job_waits(idle: Mill) -> None:
    done = submit(idle, idle.write("good.jsonl", GOOD)).ok()

    assert "warning: no live worker serves 'nobody'" in done.err
    assert "promptmill-worker start --model nobody=" in done.err
    assert idle.job_files() == [f"{done.out.strip()}.json"]
    assert idle.queue_length("nobody") == 1


# -- As people run it: the same through processes.


def test_the_installed_command_refuses_alike(idle: Mill) -> None:
    path = idle.write("bad.jsonl", GOOD + b'{"prompt": "a", "prompt": "b"}\n')

    assert_refused(idle, idle.run("submit", path, "--model", "nobody"), f"{path}:2: ")


def test_the_installed_command_refuses_a_broken_stream_alike(idle: Mill) -> None:
    done = idle.run("submit", "-", "--model", "nobody", stdin=GOOD + b'{"prompt": "cut')

    assert_refused(idle, done, "stdin:2: ")


def test_the_installed_command_exits_3_without_redis(idle: Mill) -> None:
    path = idle.write("good.jsonl", GOOD)
    done = idle.run("submit", path, "--model", "nobody", PROMPTMILL_REDIS_URL="redis://127.0.0.1:1/0")

    assert_refused(idle, done, "Redis at 127.0.0.1:1", code=3)


def test_an_interrupted_submit_says_that_nothing_was_submitted(idle: Mill) -> None:
    submitting = idle.start("submit", "-", "--model", "nobody", stdin=subprocess.PIPE)
    assert submitting.popen.stdin is not None
    submitting.popen.stdin.write(GOOD * 50_000)
    submitting.popen.stdin.flush()
    wait_until("the first batches to be staged", idle.stages)
    submitting.send(signal.SIGINT)

    assert submitting.wait() == 130
    assert submitting.said() == "interrupted: nothing was submitted; run the same command again\n"
    assert (idle.job_files(), idle.stages()) == ([], [])
