"""Packed linear layers compute what the plain ones did, and take their place."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from engine_work import generate_alone, logits_alone
from torch import nn
from transformers.pytorch_utils import Conv1D

from worker.engine import linears
from worker.engine.linears import PackedLinear, pack, unpack
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]

PROMPT = [5, 9, 300, 17, 44, 5, 8]


def plain_layers(model: Any) -> list[Any]:
    return [layer for layer in model.modules() if type(layer) in (nn.Linear, Conv1D)]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "phi3", "opt", "qwen3_moe"])
def test_packing_changes_the_logits_by_no_more_than_rounding(tiny: Tiny, kind: str) -> None:
    loaded = tiny(kind)
    model = deepcopy(loaded.model)

    assert pack(model)

    assert not plain_layers(model)
    want = logits_alone(loaded.model, PROMPT)
    assert (logits_alone(model, PROMPT) - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("shape", [(3, 5), (1, 64), (64, 1), (400, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_takes_any_number_of_rows(shape: tuple[int, int], bias: bool) -> None:
    layer = nn.Linear(shape[1], shape[0], bias=bias)
    plain = deepcopy(layer)
    packed = PackedLinear.replacing(layer)

    for rows in (1, 2, 17, 130):
        x = torch.randn(1, rows, shape[1])
        with torch.no_grad():
            torch.testing.assert_close(packed(x), plain(x))


def test_generate_goes_on_with_packed_layers(tiny: Tiny) -> None:
    loaded = tiny("llama")
    model = deepcopy(loaded.model)
    pack(model)

    packed = LoadedModel(**{**vars(loaded), "model": model})
    assert generate_alone(packed, PROMPT, 10) == generate_alone(loaded, PROMPT, 10)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_tied_head_leaves_the_embedding_as_it_is(tiny: Tiny, kind: str) -> None:
    loaded = tiny(kind, tie_word_embeddings=True)
    model = deepcopy(loaded.model)
    embedding = model.get_input_embeddings()
    assert model.lm_head.weight is embedding.weight
    before = embedding.weight.clone()

    pack(model)

    assert isinstance(model.lm_head, PackedLinear)
    assert torch.equal(embedding.weight, before)
    torch.testing.assert_close(logits_alone(model, PROMPT), logits_alone(loaded.model, PROMPT), atol=1e-3, rtol=1e-3)


def test_the_weights_that_were_packed_are_given_up_one_by_one(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = deepcopy(tiny("llama", tie_word_embeddings=False).model)
    weights = [weakref.ref(layer.weight) for layer in plain_layers(model)]
    alive: list[int] = []
    replacing = PackedLinear.replacing.__func__  # type: ignore[attr-defined]

    def counted(cls: type[PackedLinear], layer: Any) -> PackedLinear:
        packed: PackedLinear = replacing(cls, layer)
        alive.append(sum(ref() is not None for ref in weights))
        return packed

    monkeypatch.setattr(PackedLinear, "replacing", classmethod(counted))
    gc.collect()
    pack(model)

    assert alive == [*reversed(range(len(weights)))]


def test_unpacking_gives_the_very_weights_back_tied_as_they_were(tiny: Tiny) -> None:
    for kind in ("gpt2", "llama"):
        loaded = tiny(kind, tie_word_embeddings=True)
        model = deepcopy(loaded.model)
        pack(model)

        unpack(model)

        assert model.lm_head.weight is model.get_input_embeddings().weight
        for layer, original in zip(plain_layers(model), plain_layers(loaded.model), strict=True):
            assert type(layer) is type(original)
            assert torch.equal(layer.weight, original.weight)


def test_a_layer_in_two_places_is_one_layer_afterwards(tiny: Tiny) -> None:
    model = deepcopy(tiny("llama").model)
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    want = logits_alone(model, PROMPT)

    pack(model)

    assert second.mlp.up_proj is first.mlp.up_proj
    torch.testing.assert_close(logits_alone(model, PROMPT), want, atol=1e-3, rtol=1e-3)


def test_a_model_whose_check_fails_stays_as_it_is(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = deepcopy(tiny("llama").model)
    before = plain_layers(model)
    monkeypatch.setattr(linears, "_TOLERANCE", -1.0)

    assert not pack(model)

    assert plain_layers(model) == before
    assert all(layer.weight is not None for layer in before)
    assert "the linear layers stay as they are: packing them does not work here" in caplog.text


def test_an_operator_that_is_gone_leaves_the_model_as_it_is(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model = deepcopy(tiny("llama").model)

    def gone(*_: Any) -> None:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr(PackedLinear, "__init__", gone)

    assert not pack(model)
    assert generate_alone(LoadedModel(**{**vars(tiny("llama")), "model": model}), PROMPT, 3)


def test_other_dtypes_are_left_alone(tiny: Tiny) -> None:
    model = deepcopy(tiny("llama").model).to(torch.bfloat16)

    assert not pack(model)
    assert plain_layers(model)


def test_a_subclass_of_a_linear_layer_may_compute_something_else(tiny: Tiny) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    model = deepcopy(tiny("llama").model)
    model.lm_head = Doubled(64, 400, bias=False)

    pack(model)

    assert type(model.lm_head) is Doubled
