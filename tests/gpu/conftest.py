"""Small models on the accelerator."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from gpu_work import Load

from tests.models import tiny_model
from worker.engine import serving
from worker.engine.attention import NAME
from worker.engine.block_kernels import why_not_varlen
from worker.models import LoadedModel, load_model


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(kind: str, dtype: str = "float32", **config: object) -> LoadedModel:
        folder = tiny_model(kind, tmp_path / kind, **config)  # type: ignore[arg-type]
        return load_model(kind, str(folder), device="cuda", dtype=dtype)

    return load


@pytest.fixture
def load_for_blocks(load: Load) -> Load:
    """In bfloat16; the test is skipped where the device or its torch has no kernel for blocks."""

    def load_it(kind: str, **config: object) -> LoadedModel:
        loaded = load(kind, dtype="bfloat16", **config)
        model = copy.deepcopy(loaded.model)
        model.set_attn_implementation(NAME)
        if why_not := why_not_varlen(serving._shape_of(model), model.dtype, model.device):
            pytest.skip(why_not)
        return loaded

    return load_it
