"""The tests of benchmarks import their parts as the scripts of ops/bench do."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
