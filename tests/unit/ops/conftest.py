"""The files of the containers; and the tests of benchmarks import their parts as the scripts of ops/bench do."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_work import DEFAULT, ROOT, Service

sys.path.insert(0, str(Path(__file__).parents[3] / "ops" / "bench"))


@pytest.fixture
def _transformers_as_before() -> Iterator[None]:
    """The benchmark silences transformers, sets the threads of torch and freezes objects, for its whole process."""
    torch = pytest.importorskip("torch")
    transformers_logging = pytest.importorskip("transformers.utils.logging")
    threads, verbosity = torch.get_num_threads(), transformers_logging.get_verbosity()
    yield
    gc.unfreeze()
    torch.set_num_threads(threads)
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file as it is where no setting is given."""
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    assert "${" not in DEFAULT.sub("", text), "a setting without a default"
    loaded: dict[str, Any] = yaml.safe_load(DEFAULT.sub(r"\1", text))
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Service]:
    found: dict[str, Service] = compose["services"]
    return found
