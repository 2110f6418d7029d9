"""Tiny models, loaded once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.models import tiny_model
from worker.models import LoadedModel, load_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower on several threads, and the test machine has other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., LoadedModel]:
    """``tiny("llama", sliding_window=8)``: a loaded random model, the same object for the same arguments."""
    loaded: dict[str, LoadedModel] = {}

    def load(kind: str, **options: object) -> LoadedModel:
        key = f"{kind}-{sorted(options.items())}"
        if key not in loaded:
            folder = tiny_model(kind, tmp_path_factory.mktemp(kind), **options)  # type: ignore[arg-type]
            loaded[key] = load_model(kind, str(folder), device="cpu")
        return loaded[key]

    return load
