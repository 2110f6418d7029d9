"""No password and no key is in anything that Promptmill prints, logs or keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from tests.mill import Mill
from tests.outcome import Outcome
from tests.redis_server import Server
from tests.redis_users import SECRETS
from tests.s3_server import make_bucket, s3_server, variables

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDs3cret", "AWS_SECRET_ACCESS_KEY": "s3cretaccess", "AWS_SESSION_TOKEN": "s3crettoken"}


@pytest.fixture
def far(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mill]:
    """A mill whose store is on S3, and whose Redis wants a login that is in a file."""
    with s3_server() as endpoint:
        for name, value in {**variables(endpoint), **KEYS}.items():
            monkeypatch.setenv(name, value)
        make_bucket(endpoint, "secrets")
        mill = Mill(tmp_path, server.url, f"s3://secrets/{tmp_path.name}")
        yield mill
        mill.close()


def as_login(server: Server, user: str) -> dict[str, str]:
    """The settings of one whose password is in a file, and who wants to know everything."""
    return {
        "PROMPTMILL_REDIS_URL": f"redis://promptmill-{user}@127.0.0.1:{server.port}/0",
        "PROMPTMILL_REDIS_PASSWORD_FILE": str(server.folder / f"{user}.password"),
        "PROMPTMILL_LOG_LEVEL": "debug",
    }


def assert_silent(said: str | bytes, where: str) -> None:
    text = said if isinstance(said, str) else said.decode(errors="replace")
    told = [secret for secret in (*SECRETS, *KEYS.values()) if secret in text]
    assert not told, f"{where} tells {told}: {text[:2000]}"


def test_a_job_leaves_no_secret_in_output_logs_redis_or_store(far: Mill, server: Server, tiny: Path) -> None:
    producer = as_login(server, "producer")
    worker = far.worker("tiny", tiny, **as_login(server, "worker"))
    far.wait_for_workers([worker])
    commands: list[tuple[str, ...]] = [
        ("submit", far.prompts("quiet", 3), "--model", "tiny", "--max-tokens", "2", "--job-id", "quiet", "--wait"),
        ("status", "quiet", "--json"), ("list",), ("list", "--json"), ("workers", "--json"), ("doctor",),
        ("doctor", "--json"), ("results", "quiet"), ("check", far.prompts("more", 2), "--model", "tiny"),
        ("recover",), ("priority", "quiet", "1"), ("report", "quiet", "--json"),
    ]  # fmt: skip
    for command in commands:
        done = far.call(*command, **producer)
        assert done.code == (2 if command[0] == "priority" else 0), done
        assert_silent(done.out + done.err, " ".join(command))

    worker.close()
    assert_silent(worker.said(), "the worker's log")
    assert "DEBUG" in worker.said()
    assert_silent((server.folder / "server.log").read_bytes(), "the server's log")
    for item in far.store.list(""):
        assert_silent(far.store.get(item.path), item.path)
    names = list(server.client.scan_iter("*"))
    assert any(far.store.id in name for name in names)
    for name in names:
        assert_silent(f"{name} {contents(server.client, name)}", name)


@pytest.mark.parametrize("trouble", ["wrong password", "nobody there", "no TLS there", "no store there"])
def test_what_goes_wrong_is_told_without_the_secret(
    far: Mill, server: Server, tiny: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    far.store  # noqa: B018  # founded
    url, scheme, port = "{}://promptmill-{}@127.0.0.1:{}/0", "redis", server.port
    if trouble == "wrong password":
        far.write("wrong.password", f"{SECRETS[0]}, but another")
    elif trouble == "nobody there":
        port = 1
    elif trouble == "no TLS there":
        scheme = "rediss"
    else:
        monkeypatch.setenv("AWS_ENDPOINT", "http://user:s3cretaccess@127.0.0.1:1")
        monkeypatch.setattr("jobs.calls._ATTEMPTS", 1)

    def settings(user: str) -> dict[str, str]:
        mine = {**as_login(server, user), "PROMPTMILL_REDIS_URL": url.format(scheme, user, port)}
        wrong = {"PROMPTMILL_REDIS_PASSWORD_FILE": str(far.folder / "wrong.password")}
        return {**mine, **wrong} if trouble == "wrong password" else mine

    # Of a handshake that nobody answers a worker would wait 20 s to tell.
    monkeypatch.setattr("jobs.ledger.connection.SOCKET_TIMEOUT_S", 0.5)
    quick = trouble in ("wrong password", "nobody there")
    worker = far.worker("tiny", tiny, **settings("worker")) if quick else None
    source = far.prompts("unsent", 2)
    for command in (("submit", source, "--model", "tiny"), ("workers",), ("doctor", "--json"), ("status", "x")):
        done: Outcome = far.call(*command, **settings("producer"))
        assert done.code == 3 or command[0] == "status", done
        assert_silent(done.out + done.err, " ".join(command))
        assert "Traceback" not in done.err
    if worker is not None:
        assert worker.wait() == 3
        assert_silent(worker.said(), "the worker's log")
        assert worker.said().splitlines()[-1].startswith("error: Redis at 127.0.0.1:")


def contents(client: redis.Redis, name: str) -> object:
    """All of a key, as far as it is text."""
    readers = {
        "hash": client.hgetall, "list": lambda key: client.lrange(key, 0, -1), "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1), "string": client.get,
        "none": lambda _: "",  # it has expired meanwhile
    }  # fmt: skip
    with suppress(UnicodeDecodeError):
        return readers[client.type(name)](name)
    return ""
