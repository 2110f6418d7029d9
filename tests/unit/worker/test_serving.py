"""Which models can be run packed is found out by running them, and what cannot stays as it was."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from engine_work import generate_alone, inflight_for, random_prompt, random_request, request, run

from worker.engine import attention, padding, serving
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
        patch.setattr("worker.engine.slot_segments.attend_dense", without_the_last)
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


class TestRowsThatChangeEachOther:
    """LongRoPE takes other frequencies for all rows of a batch once one of them is longer than the model once was."""

    LONG_ROPE = {  # noqa: RUF012 - constant
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }

    @pytest.fixture
    def phi(self, tiny: Tiny) -> LoadedModel:
        return tiny("phi3", max_length=256, rope_parameters=self.LONG_ROPE, original_max_position_embeddings=64)

    def test_no_row_may_be_so_long(self, phi: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
        assert padding.context_of(phi.model.config) == 64
        assert phi.max_length == 64
        engine = inflight_for(phi)
        rng = random.Random(5)
        asked = [request(random_prompt(rng, length), max_tokens=40) for length in (20, 50, 64)]

        short, cut, long = run(engine, asked)

        assert short.token_ids == generate_alone(phi, asked[0].prompt_ids, 40)
        assert cut.token_ids == generate_alone(phi, asked[1].prompt_ids, 14)
        assert long.error_code == "prompt_too_long"
        assert "64 tokens together, not 256" in caplog.text

    def test_other_models_keep_their_context(self, tiny: Tiny) -> None:
        assert padding.context_of(tiny("phi3", max_length=256).model.config) == 256
        assert padding.context_of(tiny("gemma3_text", sliding_window=8).model.config) == 512


def test_keys_and_values_of_different_sizes_can_share_a_beginning(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=400, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, n_shared_experts=1, num_experts_per_tok=2,
        n_group=1, topk_group=1, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=16,
        v_head_dim=12, first_k_dense_replace=1, initializer_range=0.25, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = DeepseekV3ForCausalLM(config).eval()
    rng = random.Random(2)
    template = random_prompt(rng, 80)
    prompts = [template + random_prompt(rng, 5) for _ in range(6)]
    alone = [model.generate(torch.tensor([one]), do_sample=False, max_new_tokens=6)[0, 85:].tolist() for one in prompts]
    engine = InflightEngine(model, NoText(), EngineLimits(max_rows=8, max_length=256))

    answers = run(engine, [request(one, max_tokens=6) for one in prompts])

    assert [answer.error_message for answer in answers] == [None] * 6
    assert [answer.token_ids for answer in answers] == alone
    assert "failed" not in caplog.text, "nor did a step fail and go round with fewer rows"
    assert engine.stats().shared_tokens > 300


class NoText:
    """A tokenizer for ids that stand for nothing, none of which ends a text."""

    special_ids: dict[str, int] = {}  # noqa: RUF012 - constant
    pad_id = 0
    eos_id = -1

    def decode(self, ids: Any) -> str:
        return ""
