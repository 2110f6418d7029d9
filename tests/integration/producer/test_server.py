"""The embedded server of a local run, as it starts and ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from jobs.errors import RedisUnavailableError
from jobs.layout import LOCAL_FILE
from producer import server
from producer.server import EmbeddedServer
from tests.ports import free_port


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_port_that_somebody_takes_in_between_is_left_to_him(
    tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter([taken, taken, free_port()])
    monkeypatch.setattr(server, "free_port", lambda: next(ports))
    with EmbeddedServer(tmp_path, tmp_path / "redis") as embedded, redis.Redis.from_url(embedded.url) as client:
        assert client.ping()
        assert f":{taken}/" not in embedded.url
    assert not (tmp_path / LOCAL_FILE).exists()


def test_without_any_port_it_says_so_after_a_few(tmp_path: Path, taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "free_port", lambda: taken)
    with pytest.raises(RedisUnavailableError, match=rf"did not start: .*port {taken}.*server\.log"):
        EmbeddedServer(tmp_path, tmp_path / "redis").__enter__()
    assert not (tmp_path / LOCAL_FILE).exists()


def test_a_server_that_cannot_read_its_file_is_told_with_its_last_words(tmp_path: Path) -> None:
    folder = tmp_path / "redis"
    with EmbeddedServer(tmp_path, folder) as embedded, redis.Redis.from_url(embedded.url) as client:
        client.set("key", "value")
    for file in (folder / "appendonlydir").glob("*.manifest"):
        file.write_text("no manifest")
    with pytest.raises(RedisUnavailableError, match=r"did not start: .*manifest.*\(log: .*server\.log\)"):
        EmbeddedServer(tmp_path, folder).__enter__()
