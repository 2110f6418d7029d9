"""Loading models: what comes out, and one clear sentence for everything that can be wrong with one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from jobs.errors import ModelError
from tests.models import tiny_model
from worker.models import UNBOUNDED, LoadedModel, load_model

Tiny = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("saved"), max_length=64)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a good model to spoil."""
    return shutil.copytree(saved, tmp_path / "model")


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def load(folder: Path | str, **options: object) -> LoadedModel:
    return load_model("tiny", str(folder), device="cpu", **options)  # type: ignore[arg-type]


def test_a_folder_loads_with_all_that_a_worker_registers(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded = load(saved)

    assert (loaded.name, loaded.source, loaded.device) == ("tiny", str(saved), "cpu")
    assert (loaded.dtype, loaded.max_length) == ("float32", 64)
    assert not loaded.model.training
    assert loaded.tokenizer.encode("tea")
    assert capfd.readouterr() == ("", ""), "progress bars and warnings stay away from the terminal"


def test_revision_and_fingerprint_tell_weights_and_dtypes_apart(saved: Path, folder: Path, tmp_path: Path) -> None:
    here, copied, half = load(saved), load(folder), load(folder, dtype="bfloat16")
    other = load(tiny_model("llama", tmp_path / "other", max_length=64, seed=1))

    assert (copied.revision, copied.fingerprint) == (here.revision, here.fingerprint)
    assert half.revision == here.revision
    assert half.model.dtype == torch.bfloat16
    assert len({here.fingerprint, half.fingerprint, other.fingerprint}) == 3


def test_a_model_that_names_no_context_length_has_none(tiny: Tiny) -> None:
    assert tiny("mamba").max_length == UNBOUNDED


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        load(tmp_path / "absent")


def test_a_file_instead_of_a_folder(saved: Path) -> None:
    with pytest.raises(ModelError, match="is a file: give the model's folder"):
        load(saved / "config.json")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config.json"):
        load(tmp_path)


def test_a_configuration_that_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config"):
        load(folder)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model.bin\), which can run code"):
        load(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_weights_cut_by_a_broken_download(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model.safetensors is damaged or incomplete .* download the model again"):
        load(folder)


def test_a_missing_shard(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00001-of-00002.safetensors is damaged or incomplete"):
        load(folder)


def test_weights_that_lack_a_layer_are_not_filled_with_noise(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=3, layer_types=None)
    with pytest.raises(ModelError, match="lacks 9 weights"):
        load(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    edit_config(folder, intermediate_size=96)
    with pytest.raises(ModelError, match="weights cannot be loaded"):
        load(folder)


def test_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(ModelError, match="has no usable tokenizer"):
        load(folder)


def test_an_unknown_architecture(folder: Path) -> None:
    edit_config(folder, model_type="frobnicator")
    with pytest.raises(ModelError, match="does not know its architecture"):
        load(folder)


def test_a_model_that_brings_its_own_code(folder: Path) -> None:
    edit_config(
        folder, model_type="frobnicator", auto_map={"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    )
    (folder / "own.py").write_text("raise SystemExit('this code must never run')")
    with pytest.raises(ModelError, match="needs code of its own"):
        load(folder)


def test_an_encoder_decoder(folder: Path, tmp_path: Path) -> None:
    config = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match="encoder-decoder model"):
        load(tmp_path / "t5")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load("someone/some-model-that-nobody-has")


def test_a_device_that_is_not_there(saved: Path) -> None:
    with pytest.raises(ModelError, match="the device 'cuda:77' cannot be used"):
        load_model("tiny", str(saved), device="cuda:77")
    with pytest.raises(ModelError, match="the device 'toaster' cannot be used"):
        load_model("tiny", str(saved), device="toaster")


def test_an_unknown_dtype(saved: Path) -> None:
    with pytest.raises(ModelError, match="unknown dtype 'int7': use auto, float32, bfloat16 or float16"):
        load(saved, dtype="int7")
