"""The Redis users of ops/redis: tests' servers know them, and product code logs in as the one that it is."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import redis

User = Literal["producer", "worker", "admin"]

USERS: tuple[User, ...] = ("producer", "worker", "admin")
SCRIPT = Path(__file__).parents[1] / "ops" / "redis" / "users"

#: What tells a password of theirs, as it is and as URLs have it.
SECRETS = ("s3cret/w@rd", "s3cret%2Fw%40rd")

_LOGIN = re.compile(r"://promptmill-[a-z]+:[^@]*@")


def password(user: User) -> str:
    """One that has to be percent-encoded, and is found wherever it should not be."""
    return f"{SECRETS[0]}:of {user}"


def login(user: User) -> str:
    """What goes before the host of a URL."""
    return f"promptmill-{user}:{quote(password(user), safe='')}@"


def as_user(url: str, user: User) -> str:
    """``url`` with another of the users; one that has none of them stays as it is."""
    return _LOGIN.sub(f"://{login(user)}", url)


def users_file(folder: Path) -> Path:
    """A file for ``aclfile`` in ``folder``, as ``ops/redis/users`` makes it."""
    files = []
    for user in USERS:
        files.append(folder / f"{user}.password")
        files[-1].write_text(f"{password(user)}\n")
    made = folder / "users.acl"
    made.write_text(_printed(*map(str, files)))
    return made


def _printed(*files: str) -> str:
    return subprocess.run([str(SCRIPT), *files], capture_output=True, text=True, check=True).stdout


def refused(client: redis.Redis) -> list[str]:
    """What the users of ops/redis were not let do, by the server's own log, which is empty after that."""
    entries = [entry for entry in client.acl_log() if entry["username"].startswith("promptmill-")]
    client.acl_log_reset()
    return [
        f"{entry['username']}: {entry['reason']} {entry['object']} in {entry['context']}"
        for entry in entries
        if entry["reason"] != "auth"
    ]
