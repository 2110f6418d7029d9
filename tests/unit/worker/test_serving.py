"""Which models can be run packed is found out by running them, and what cannot stays as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_work import generate_alone, inflight_for, random_request, run

from worker.engine import attention, serving
from worker.engine.attention import KVShape
from worker.engine.inflight import InflightEngine
from worker.engine.linears import PackedLinear
from worker.engine.padded import PaddedEngine
from worker.engine.request import EngineLimits
from worker.engine.serving import UnservableError, backend_for
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]

PROMPT = [5, 9, 300, 17, 44, 5, 8]
LIMITS = EngineLimits(max_rows=4, max_length=256)


def own(loaded: LoadedModel) -> LoadedModel:
    """A copy that may be changed."""
    return replace(loaded, model=deepcopy(loaded.model))


def assert_refused(mine: LoadedModel, original: LoadedModel, reason: str) -> None:
    """The model is refused for the reason, and is what it was before."""
    before = mine.model.config._attn_implementation
    with pytest.raises(UnservableError, match=reason):
        backend_for(mine.model, LIMITS)

    assert mine.model.config._attn_implementation == before
    assert not any(isinstance(layer, PackedLinear) for layer in mine.model.modules())
    assert generate_alone(mine, PROMPT, 8) == generate_alone(original, PROMPT, 8)


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_a_model_whose_attention_cannot_be_replaced_is_refused_and_can_be_padded(tiny: Tiny, kind: str) -> None:
    loaded = tiny(kind)
    mine = own(loaded)

    assert_refused(mine, loaded, "its attention cannot be replaced")

    engine = PaddedEngine(mine.model, mine.tokenizer, LIMITS)
    assert run(engine, [random_request(random.Random(1))])[0].error_code is None


def test_a_model_of_attention_and_recurrent_layers_is_refused(tmp_path: Any) -> None:
    from transformers import JambaConfig, JambaForCausalLM

    config = JambaConfig(
        vocab_size=400, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, use_mamba_kernels=False, mamba_d_state=8, mamba_dt_rank=4, initializer_range=0.25,
        max_position_embeddings=256, pad_token_id=0,
    )  # fmt: skip
    model: Any = JambaForCausalLM(config)
    model.eval()
    with torch.no_grad():
        want = model(torch.tensor([PROMPT]), use_cache=False).logits

    with pytest.raises(UnservableError, match="its layers keep different things of a token"):
        backend_for(model, LIMITS)

    with torch.no_grad():
        assert torch.equal(model(torch.tensor([PROMPT]), use_cache=False).logits, want)


def test_a_model_that_computes_something_else_when_packed_is_refused(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("llama")
    mine = own(loaded)
    attend = attention.attend_dense

    def without_the_last(layer: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        return attend(layer, query, key, value.roll(1, -2), mask)

    with monkeypatch.context() as patch:
        patch.setattr("worker.engine.slot_attention.attend_dense", without_the_last)
        assert_refused(mine, loaded, r"packing its rows moves the logits by \d")


def test_a_model_that_fails_when_packed_is_refused(tiny: Tiny) -> None:
    loaded = tiny("gpt2", max_length=16)

    assert_refused(own(loaded), loaded, "it fails with packed rows")


def test_a_cache_too_small_for_two_rows_is_told(tiny: Tiny) -> None:
    with pytest.raises(UnservableError, match="a cache of 100 tokens is too small for two rows"):
        backend_for(own(tiny("llama")).model, replace(LIMITS, kv_tokens=100))


def test_a_model_that_looks_at_the_weights_of_its_layers_is_served_with_plain_ones(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = tiny("llama")
    mine = own(loaded)
    head = mine.model.lm_head
    mine.model.model.norm.register_forward_pre_hook(lambda _, args: (args[0].to(mine.model.lm_head.weight.dtype),))

    engine = InflightEngine(mine.model, mine.tokenizer, LIMITS)

    assert mine.model.lm_head is head
    assert "the linear layers stay as they are: with packed ones it fails (AttributeError" in caplog.text
    asked = [random_request(random.Random(i)) for i in range(4)]
    assert [one.token_ids for one in run(engine, asked)] == [one.token_ids for one in run(inflight_for(loaded), asked)]


def test_what_a_token_takes_is_found_out_by_running_the_model(tiny: Tiny) -> None:
    shapes = {kind: serving_shape(tiny(kind)) for kind in ("gpt2", "llama", "gemma2")}

    assert shapes == {
        "gpt2": KVShape(2, 4, 16, 16), "llama": KVShape(2, 2, 16, 16), "gemma2": KVShape(2, 2, 16, 16)
    }  # fmt: skip
    assert shapes["llama"].numbers == 2 * 2 * 32


def serving_shape(loaded: LoadedModel) -> KVShape:
    model = own(loaded).model
    model.set_attn_implementation(attention.NAME)
    with torch.no_grad():
        return serving._shape_of(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_16_bits_passes_the_check(tiny: Tiny, dtype: torch.dtype) -> None:
    model = own(tiny("llama")).model.to(dtype)

    backend = backend_for(model, replace(LIMITS, kv_tokens=1024))

    assert backend.cache.budget == 1024
    assert backend.cache.used_ratio == 0
    assert model.config._attn_implementation == attention.NAME
