"""A Redis connection that says in one sentence what is wrong with it, and the scripts that run on it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from jobs.errors import InputError, RedisFullError, RedisUnavailableError
from jobs.ledger import keys, tls
from jobs.ledger.login import FileLogin

_T = TypeVar("_T")

#: Seconds. A reply takes milliseconds; a server that was stopped, or a cut cable, never replies.
SOCKET_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
#: Seconds between pings of an idle connection, below the idle timeouts of common firewalls.
HEALTH_CHECK_S = 25

#: Where user and password are set.
_LOGIN = "PROMPTMILL_REDIS_URL and PROMPTMILL_REDIS_PASSWORD_FILE"

_FULL = "is out of memory: raise maxmemory, or wait until jobs end"

#: Replies that mean "not now" or "not you" rather than a mistake of ours, and what to do about each.
_REFUSALS: tuple[tuple[type[RedisError], str], ...] = (
    (AuthenticationError, f"refuses the user name or password: check {_LOGIN}"),
    (AuthorizationError, f"refuses this user: check {_LOGIN}"),
    (NoPermissionError, "does not let this user do that: check its ACL"),
    (OutOfMemoryError, _FULL),
    (ReadOnlyError, "is a read-only replica: point PROMPTMILL_REDIS_URL at the primary"),
    (BusyLoadingError, "is loading its data: try again in a moment"),
)
#: What one who gave no password is told: by a server that has one, or where the default user may do next to nothing.
_FOR_NOBODY = (AuthenticationError, NoPermissionError)
_REFUSAL_PREFIXES = {
    "DENIED": "is in protected mode and takes no connection from other machines: give it users who log in "
    "(ops/redis/users) and `protected-mode no`",
    "MISCONF": "cannot save to its disk and refuses writes: see the server's log",
    "OOM": _FULL,
    "BUSY": "is busy with a script: try again in a moment",
    "NOREPLICAS": "has too few replicas and refuses writes",
    "MASTERDOWN": "has lost its primary",
    "CLUSTERDOWN": "is a cluster that is down",
    "DB index": "has no database of that number: see the end of PROMPTMILL_REDIS_URL",
    "unknown command": "lacks a command that is needed: use Redis 7.0 or Valkey 7.2, or later",
}


def connect(url: str) -> redis.Redis:
    """A client of the server at ``url``; nothing is sent yet. Raises InputError for a URL that is none.

    The client does not retry by itself: a claim that was sent twice would lease two batches.
    """
    try:
        url.encode("utf-8")
        client = redis.Redis.from_url(
            url,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            health_check_interval=HEALTH_CHECK_S,
            retry=Retry(NoBackoff(), 0),
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
        )
        pool = client.connection_pool
        if not url.startswith("unix:") and urlsplit(url).path.strip("/") and "db" not in pool.connection_kwargs:
            raise ValueError  # redis-py would take database 0
        # Nothing is sent by that; redis-py looks at options only when it makes a connection.
        pool.connection_class(**pool.connection_kwargs)
        login = FileLogin.of(url)
    except (TypeError, RedisError):
        # Not shown either: a password may hold a '?'.
        raise InputError(
            "the Redis URL has an option that redis-py does not know, or a value that it does not take, after its '?' "
            "(which is %3F in a password)"
        ) from None
    except ValueError:
        # The cause is not shown: where a password holds a '/' or '#', it quotes a part of it.
        raise InputError(
            "the Redis URL cannot be read: write redis://[user:password@]host:port/db, rediss:// or unix:// "
            "(characters such as '/', '#' and '@' in a password as %2F, %23, %40)"
        ) from None
    if login is not None:
        pool.connection_kwargs.update(username=None, password=None, credential_provider=login)
    tls.check_files(pool.connection_kwargs)
    return client


def address(client: redis.Redis) -> str:
    """Where ``client`` connects to, without user and password."""
    options = client.connection_pool.connection_kwargs
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"


@contextmanager
def explained(client: redis.Redis) -> Iterator[None]:
    """Turns the errors of a server that cannot be reached or refuses into RedisUnavailableError."""
    try:
        yield
    except RedisError as error:
        reason = _reason(error, client.connection_pool)
        if reason is None:
            raise
        kind = RedisFullError if reason == _FULL else RedisUnavailableError
        raise kind(f"Redis at {address(client)} {reason}") from error


def _reason(error: RedisError, pool: redis.ConnectionPool) -> str | None:
    logs_in = pool.connection_kwargs.get("password") or pool.connection_kwargs.get("credential_provider")
    if isinstance(error, _FOR_NOBODY) and not logs_in:
        return f"wants a user name and a password: set {_LOGIN}"
    for kind, reason in _REFUSALS:
        if isinstance(error, kind):
            return reason
    if isinstance(error, redis.exceptions.TimeoutError):
        return "does not answer in time" + tls.of_silence(error)
    if isinstance(error, redis.exceptions.InvalidResponse):
        return "answers, but is no Redis: check PROMPTMILL_REDIS_URL"
    if isinstance(error, redis.exceptions.ConnectionError):
        return f"cannot be reached: {tls.said(str(error).rstrip('.'), pool)}"
    if isinstance(error, ResponseError):
        text = str(error)
        return next((reason for prefix, reason in _REFUSAL_PREFIXES.items() if text.startswith(prefix)), None)
    return None


#: Seconds before a command is sent again, at least and at most.
_PAUSE_S = 0.05, 0.3


def once_more(call: Callable[[], _T]) -> _T:
    """``call``, repeated once where the connection broke: a server's restart closes every pooled connection.

    Only for what may run twice.
    """
    # Not tenacity's: its bookkeeping took a tenth of the time of a call that succeeds.
    try:
        return call()
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        time.sleep(random.uniform(*_PAUSE_S))
        return call()


class Scripts:
    """The transitions of one store, run by name. Redis keeps each by its hash, and is sent it once."""

    def __init__(self, client: redis.Redis, store_id: str) -> None:
        self._client = client
        self._prefix = keys.prefix(store_id)
        self._scripts = {name: client.register_script(text) for name, text in _SOURCES.items()}

    def run(self, name: str, *args: Any) -> Any:
        """The script's reply. Raises RedisUnavailableError."""
        with explained(self._client):
            return self._scripts[name](args=[self._prefix, *args])

    def run_twice(self, name: str, *args: Any) -> Any:
        """As ``run``, sent again where the connection broke: for scripts that can be repeated."""
        with explained(self._client):
            return once_more(lambda: self._scripts[name](args=[self._prefix, *args]))


def _load() -> dict[str, str]:
    """Each script by name: its ``#!lua`` line, which must come first, the keys, common.lua, the rest."""
    folder = Path(__file__).parent
    shared = keys.lua_table() + "\n" + (folder / "common.lua").read_text(encoding="utf-8")
    sources = {}
    for path in sorted(folder.glob("*.lua")):
        if path.name != "common.lua":
            shebang, _, body = path.read_text(encoding="utf-8").partition("\n")
            sources[path.stem] = f"{shebang}\n{shared}\n{body}"
    return sources


_SOURCES = _load()
