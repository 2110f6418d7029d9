"""A mill of its own for each test: its server and its workers are there to be killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mill import Mill
from tests.models import tiny_model
from tests.redis_server import Server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small GPT-2."""
    return tiny_model("gpt2", tmp_path_factory.mktemp("models") / "tiny", max_length=128)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.close()


@pytest.fixture(scope="module")
def mill(tmp_path_factory: pytest.TempPathFactory, server: Server) -> Iterator[Mill]:
    """One store for a module's tests, which start and kill workers; none is there at first."""
    mill = Mill(tmp_path_factory.mktemp("mill"), server.url)
    yield mill
    mill.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """Of one test, which kills it, or changes its users."""
    server = Server(tmp_path / "redis").start()
    yield server
    server.close()
