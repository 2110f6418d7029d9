"""The Redis users of ops/redis: they may do what they need, which all tests with a server try, and nothing else."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import redis

import jobs.ledger
from jobs.ledger.keys import STORES
from tests.redis_users import SCRIPT, User, as_user

LEDGER = Path(jobs.ledger.__file__).parent
#: The scripts that only a worker runs.
WORKERS_SCRIPTS = {"claim", "register", "suspect"}
#: What Celery and redis-py send by themselves: permits are pushed, bindings noted; a worker pops permits,
#: drops one that is invalid, and gives back what workers of earlier versions noted and did not acknowledge.
SENDS = {"lpush", "sadd", "multi", "exec", "evalsha", "script|load"}
TAKES = {"brpop", "hset", "hget", "hdel", "zadd", "zrem", "zrange", "set", "get", "del", "rpush", "watch", "unwatch"}


def rules(user: User) -> list[str]:
    """The words of a user's line in the template."""
    text = (SCRIPT.parent / "users.acl").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith(f"user promptmill-{user} ")]
    return line.split()[2:]


def called_by(scripts: list[Path]) -> set[str]:
    """The commands in these scripts and in what they share."""
    text = "".join(path.read_text(encoding="utf-8") for path in [LEDGER / "common.lua", *scripts])
    return {name.lower() for call in re.findall(r"\bcall\(([^,]*),?", text) for name in re.findall(r"'([A-Z]+)'", call)}


@pytest.mark.parametrize("user", ["producer", "worker"])
def test_every_command_that_is_allowed_is_needed_and_the_other_way_round(user: User) -> None:
    scripts = [path for path in LEDGER.glob("*.lua") if user == "worker" or path.stem not in WORKERS_SCRIPTS]
    ledger = "".join(path.read_text(encoding="utf-8") for path in LEDGER.glob("*.py"))
    direct = {name.lower() for name in re.findall(r'_command\(\s*"([A-Z]+)"', ledger)}
    needed = called_by(scripts) | direct | SENDS | (TAKES if user == "worker" else set())

    words = rules(user)
    allowed = {word[1:] for word in words if word.startswith("+") and word != "+@connection"}

    assert allowed == needed - {"ping"}  # one of @connection
    named = [f"+{name}" for name in sorted(allowed)]
    assert words[2:] == ["resetchannels", "~promptmill:*", "-@all", "+@connection", "-@dangerous", *named]


def may(client: redis.Redis, user: str, *command: str) -> bool:
    return client.execute_command("ACL", "DRYRUN", user, *command) == "OK"


FORBIDDEN = [
    ("flushall",), ("flushdb",), ("keys", "*"), ("scan", "0"), ("randomkey",), ("config", "get", "*"),
    ("config", "set", "dir", "/"), ("acl", "list"), ("acl", "setuser", "x"), ("debug", "sleep", "1"), ("shutdown",),
    ("replicaof", "h", "1"), ("slaveof", "h", "1"), ("module", "list"), ("eval", "return 1", "0"), ("monitor",),
    ("function", "list"), ("script", "flush"), ("script", "kill"), ("client", "list"), ("client", "kill", "id", "1"),
    ("client", "pause", "1"), ("bgsave",), ("save",), ("bgrewriteaof",), ("publish", "c", "m"), ("subscribe", "c"),
    ("psubscribe", "*"), ("get", "other"), ("set", "other", "1"), ("del", "promptmill"), ("llen", "celery"),
    ("hgetall", "session:1"), ("rename", "promptmill:a", "promptmill:b"),
    ("migrate", "h", "1", "promptmill:a", "0", "1"), ("dump", "promptmill:a"),
    ("restore", "promptmill:a", "0", "x"), ("sort", "promptmill:a"), ("swapdb", "0", "1"),
    ("latency", "reset"), ("slowlog", "get"), ("memory", "doctor"), ("object", "freq", "promptmill:a"),
]  # fmt: skip


@pytest.mark.parametrize("command", FORBIDDEN, ids=" ".join)
def test_users_of_the_programs_may_do_nothing_else(redis_server: Any, command: tuple[str, ...]) -> None:
    for user in ("promptmill-producer", "promptmill-worker", "default"):
        assert not may(redis_server.client, user, *command), user
    assert may(redis_server.client, "promptmill-admin", *command)


@pytest.mark.parametrize("key", ["promptmill:s:job:a", STORES, "promptmill:s:celery:permits.m"])
def test_a_producer_takes_no_work(redis_server: Any, key: str) -> None:
    for command in (("brpop", key, "1"), ("lpop", key), ("bitpos", key, "0"), ("hexists", key, "f"), ("strlen", key)):
        assert may(redis_server.client, "promptmill-worker", *command)
        assert not may(redis_server.client, "promptmill-producer", *command)


def test_anybody_may_ask_whether_the_server_lives_and_nothing_more(redis_server: Any) -> None:
    where = redis_server.url.rpartition("@")[2]
    with redis.Redis.from_url(f"redis://{where}") as anybody:
        assert anybody.ping()
        for command in ("INFO", f"GET {STORES}", f"HGETALL {STORES}", "COMMAND", "ACL WHOAMI", "CLIENT ID"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                anybody.execute_command(*command.split())


def test_a_script_reaches_no_key_that_its_user_may_not(redis_server: Any) -> None:
    redis_server.client.set("other", "secret")
    sha = redis_server.client.script_load("return redis.call('GET', ARGV[1])")
    with redis.Redis.from_url(redis_server.url) as worker:
        assert worker.evalsha(sha, 0, "promptmill:nothing") is None
        with pytest.raises(redis.exceptions.ResponseError, match=r"ACL|perm"):
            worker.evalsha(sha, 0, "other")
    assert redis_server.client.acl_log()[0]["object"] == "other"
    redis_server.client.acl_log_reset()
    redis_server.client.delete("other")


def test_the_admin_may_do_everything(redis_server: Any) -> None:
    with redis.Redis.from_url(as_user(redis_server.url, "admin")) as admin:
        assert admin.config_get("maxmemory-policy")


# -- The script that makes the file.


def made(*files: object) -> tuple[int, str, str]:
    done = subprocess.run([str(SCRIPT), *map(str, files)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def passwords(tmp_path: Path) -> list[Path]:
    contents = {"producer": b"one\n", "worker": b" t w&o\\/\r\nmore\n", "admin": b"three"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [tmp_path / name for name in contents]


def test_the_file_holds_hashes_of_the_first_lines_alone(passwords: list[Path]) -> None:
    code, out, err = made(*passwords)

    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["user", "default", "on"], ["user", "promptmill-producer", "on"], ["user", "promptmill-worker", "on"],
        ["user", "promptmill-admin", "on"],
    ]  # fmt: skip
    for line, password in zip(lines[1:], (b"one", b" t w&o\\/", b"three"), strict=True):
        assert f" #{hashlib.sha256(password).hexdigest()} " in line
    assert not re.search(r"SHA256|\\|t w&o|three", out)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files[1].write_bytes(b"\nsecond"), "worker is to be a password, and is empty"),
        (lambda files: files[1].write_bytes(b" \t\n"), "worker is to be a password, and is empty"),
        (lambda files: files[1].write_bytes(b"\xef\xbb\xbfword\n"), "worker begins with a byte order mark"),
        (lambda files: files[0].unlink(), "there is no password file "),
        (lambda files: files[2].write_bytes(b"one\n"), "producer holds the password of another user too"),
        (lambda files: files[2].write_bytes(b" t w&o\\/"), "worker holds the password of another user too"),
        (lambda files: files.pop(), "usage: ops/redis/users "),
    ],
)
def test_what_is_wrong_with_the_passwords_is_told_and_nothing_is_printed(
    passwords: list[Path], spoil: Any, said: str
) -> None:
    spoil(passwords)
    code, out, err = made(*passwords)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
