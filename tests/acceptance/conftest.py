"""One mill for the whole folder: a store, a server, and a worker that serves ``tiny``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_work import submit

from tests.mill import Mill
from tests.models import tiny_model
from tests.redis_server import Server
from tests.redis_users import refused


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small GPT-2 without a chat template; its context is 128 tokens."""
    return tiny_model("gpt2", tmp_path_factory.mktemp("models") / "tiny", max_length=128)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis")).start()
    yield server
    left = refused(server.client)
    server.close()
    assert left == [], "producer and worker may do all that they do: their rights are whole"


@pytest.fixture(scope="session")
def mill(tmp_path_factory: pytest.TempPathFactory, server: Server, tiny: Path) -> Iterator[Mill]:
    """Serves the model ``tiny``. Nobody serves ``nobody``: its jobs stay as they are."""
    mill = Mill(tmp_path_factory.mktemp("mill"), server.url)
    try:
        mill.workers("tiny", tiny, 1)
        # Whichever test comes first: of a store without any job, workers and commands tell that it may be the wrong
        # one where their Redis serves others too, as those of the tests that ran before in this process.
        submit(mill, "founding", 1, model="nobody")
        yield mill
    finally:
        mill.close()


@pytest.fixture(scope="session")
def chatty(mill: Mill, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a model that is served too, and has a chat template."""
    mill.workers("chatty", tiny_model("gpt2", tmp_path_factory.mktemp("models") / "chatty", chat=True), 1)
    return "chatty"


@pytest.fixture
def idle(tmp_path: Path, server: Server) -> Iterator[Mill]:
    """A mill of one test, without workers and with a store of its own that does not exist yet."""
    mill = Mill(tmp_path, server.url)
    yield mill
    mill.close()
