"""Permits on a real server: small JSON messages in the queue of their model and store."""

from __future__ import annotations

import base64
import json
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import RedisUnavailableError
from jobs.ledger import Ledger
from jobs.permits import MAX_AT_ONCE, PERMIT_TASK, Permits, make_app
from tests.redis_server import Server


@pytest.mark.parametrize("model", ["tiny", "org/model:7b@main", "a+b.c_d-e"])
def test_permits_lie_in_the_queue_that_the_ledger_counts(permits: Permits, ledger: Ledger, model: str) -> None:
    permits.send(model)
    permits.send(model, 3)
    permits.send(model, 0)
    permits.send("another")
    assert ledger.queue_length(permits.queue_key(model)) == 4
    assert ledger.queue_length(permits.queue_key("another")) == 1


def test_a_fleet_of_thousands_gets_its_first_permits_from_one_sender_and_the_others_from_its_claims(
    permits: Permits, ledger: Ledger
) -> None:
    permits.send("tiny", 4_000)
    assert ledger.queue_length(permits.queue_key("tiny")) == MAX_AT_ONCE


def test_a_permit_names_its_task_and_nothing_else(permits: Permits, redis_server: Any) -> None:
    permits.send("tiny")
    message = json.loads(redis_server.client.lpop(permits.queue_key("tiny")))
    assert message["headers"]["task"] == PERMIT_TASK
    assert message["content-type"] == "application/json"
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([], {})


def test_every_key_of_the_broker_carries_the_store(permits: Permits, ledger: Ledger, redis_server: Any) -> None:
    permits.send("tiny")
    prefix = f"promptmill:{ledger.store_id}:"
    assert [name for name in redis_server.client.keys("*") if not name.startswith(prefix)] == []


def test_many_threads_send_through_one_object(permits: Permits, ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: permits.send("tiny", 2), range(40)))
    assert ledger.queue_length(permits.queue_key("tiny")) == 80


def test_a_server_that_is_away_is_said_within_seconds() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        permits = Permits(make_app(f"redis://:secret@127.0.0.1:{unused.getsockname()[1]}/0", "s1"), "s1")
        began = time.monotonic()
        with pytest.raises(RedisUnavailableError, match="did not take a permit for model tiny") as raised:
            permits.send("tiny")
        assert time.monotonic() - began < 60
        assert "secret" not in str(raised.value)
        permits.close()


def test_permits_are_sent_again_after_the_server_closed_the_connections(
    permits: Permits, ledger: Ledger, redis_server: Any
) -> None:
    permits.send("tiny")
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    permits.send("tiny")
    assert ledger.queue_length(permits.queue_key("tiny")) == 2


@pytest.mark.parametrize("query", ["", "?db=2"])
def test_permits_go_through_a_unix_socket_with_a_password_into_the_ledgers_database(tmp_path: Path, query: str) -> None:
    # A path of its own: those of sockets must be short.
    with tempfile.TemporaryDirectory() as folder:
        server = Server(tmp_path, f"unixsocket {folder}/redis.sock", password="p@ss;w").start()
        url = f"unix://:p%40ss%3Bw@{folder}/redis.sock{query}"
        ledger, permits = Ledger.connect(url, "s1"), Permits(make_app(url, "s1"), "s1")
        try:
            permits.send("tiny", 2)
            assert ledger.queue_length(permits.queue_key("tiny")) == 2
        finally:
            permits.close()
            ledger.close()
            server.close()


def test_permits_go_into_the_database_that_the_query_names(redis_server: Any) -> None:
    url = redis_server.url.removesuffix("/0") + "?db=3"
    ledger, permits = Ledger.connect(url, "s1"), Permits(make_app(url, "s1"), "s1")
    try:
        permits.send("tiny")
        assert ledger.queue_length(permits.queue_key("tiny")) == 1
    finally:
        redis_server.client.flushall()
        permits.close()
        ledger.close()
