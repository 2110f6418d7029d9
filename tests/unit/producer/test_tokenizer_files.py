"""A tokenizer and a context length are found where a model's files are, or one sentence says why not."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from jobs.errors import InputError
from producer import tokenizer as subject
from producer.tokenizer import context_length, find_tokenizer
from tests.models import tiny_tokenizer


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty Hugging Face cache, and a hub at a port where nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(subject, "getproxies", dict)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        yield tmp_path / "hub"


def refusal(path_or_id: str, *, download: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        find_tokenizer(path_or_id, download=download)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_and_its_file_are_the_same_tokenizer(model_folder: Path) -> None:
    for path in (model_folder, model_folder / "tokenizer.json"):
        assert find_tokenizer(str(path), download=False).get_vocab_size() == len(tiny_tokenizer())
        assert context_length(str(path)) == 64


def test_what_the_file_says_of_truncation_and_padding_is_not_done(model_folder: Path, tmp_path: Path) -> None:
    tokenizer = find_tokenizer(str(model_folder), download=False)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = find_tokenizer(str(tmp_path), download=False)
    assert [len(one) for one in found.encode_batch(["the lamp is warm and quiet", "a"])] != [2, 2]
    assert len(found.encode("a")) == 1


def test_an_id_is_taken_from_the_cache(model_folder: Path, cache: Path) -> None:
    snapshot = cache / "models--some--model" / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (cache / "models--some--model" / "refs").mkdir()
    (cache / "models--some--model" / "refs" / "main").write_text("c0ffee")
    for name in ("tokenizer.json", "config.json"):
        (snapshot / name).write_bytes((model_folder / name).read_bytes())
    assert find_tokenizer("some/model", download=False).get_vocab_size() == len(tiny_tokenizer())
    assert context_length("some/model") == 64


def test_what_cannot_be_had_is_said_in_one_sentence(
    model_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty").mkdir()
    assert refusal(str(tmp_path / "empty")).endswith("has no tokenizer.json")
    assert "is no tokenizer that can be read" in refusal(str(tmp_path / "broken.json"))
    for path in ("./nowhere", "/nowhere", "~/nowhere", "a/b/c", "nowhere.json"):
        assert refusal(path) == f"there is no file or folder {path}"
    assert "the hub cannot be reached" in refusal("some/model")
    assert "the Hugging Face cache has no tokenizer" in refusal("some/model", download=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal("some/model")
    monkeypatch.setattr(subject, "find_spec", lambda name: None)
    assert refusal(str(model_folder)) == "counting tokens needs the package tokenizers: pip install tokenizers"


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 4096, "n_positions": 7}, 4096),
        ({"n_ctx": 32}, 32),
        ({"text_config": {"max_position_embeddings": 128}, "max_position_embeddings": 1}, 128),
        ({"n_positions": "many", "seq_length": 0}, None),
        ([], None),
    ],
)
def test_a_context_is_read_from_what_configurations_call_it(
    tmp_path: Path, config: object, context: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert context_length(str(tmp_path)) == context


def test_a_context_that_nobody_names_is_unknown(tmp_path: Path) -> None:
    assert context_length(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    assert context_length(str(tmp_path)) is None
