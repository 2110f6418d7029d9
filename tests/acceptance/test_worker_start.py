"""A worker that cannot serve says so in one line and exits with 2 or 3, before it takes any work."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.mill import Mill


def started(mill: Mill, *flags: str, **env: str) -> tuple[int, list[str]]:
    """The exit status of a worker that ends by itself, and its lines."""
    process = mill.start_worker(*flags, **env)
    return process.wait(), process.said().strip().splitlines()


@pytest.fixture
def pickled(tmp_path: Path, tiny: Path) -> Path:
    folder = Path(shutil.copytree(tiny, tmp_path / "pickled"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def test_a_folder_that_is_not_there_is_told_in_one_line(mill: Mill, tmp_path: Path) -> None:
    code, lines = started(mill, "--model", f"x={tmp_path}/nowhere")

    assert code == 2
    assert lines == [f"error: there is no folder {tmp_path}/nowhere"]


def test_pickled_weights_are_refused_in_one_line(mill: Mill, pickled: Path) -> None:
    code, lines = started(mill, "--model", f"x={pickled}")

    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {pickled} has only pickled weights (pytorch_model.bin)")


def test_a_store_that_belongs_to_something_else_is_told_before_the_model_is_loaded(
    mill: Mill, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"meow")
    code, lines = started(mill, "--model", f"x={tiny}", PROMPTMILL_STORE=str(tmp_path))

    assert code == 3
    assert len(lines) == 1
    assert "belongs to something else" in lines[0]


def test_a_redis_that_is_down_is_told_before_the_model_is_loaded(mill: Mill, tiny: Path) -> None:
    code, lines = started(mill, "--model", f"x={tiny}", PROMPTMILL_REDIS_URL="redis://:hidden-word@127.0.0.1:1/0")

    assert code == 3
    assert len(lines) == 1
    assert lines[0].startswith("error: Redis at 127.0.0.1:1 cannot be reached")
