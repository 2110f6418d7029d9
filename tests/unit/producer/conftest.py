"""What the tests of counting share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models import tiny_tokenizer

pytest.register_assert_rewrite("tests.pipeline_reference")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder as far as a producer reads it: a real tokenizer, and a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"n_positions": 64}')
    return folder
