"""Which engine a model gets, and what is said of it."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from engine_work import assert_chosen_alone, assert_varied, random_prompt, request, run

from jobs.errors import ModelError
from worker.app import WorkerOptions, engine_for
from worker.doctor import examine
from worker.engine import attention
from worker.engine.build import EngineChoice, build_engine, describe
from worker.engine.inflight import InflightEngine
from worker.engine.padded import PaddedEngine
from worker.engine.request import EngineLimits
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]

#: Models of this file's own: to be served in flight changes a model.
SEED = 21


def build(loaded: LoadedModel, choice: EngineChoice, **limits: Any) -> tuple[Any, str]:
    if loaded.model.config._attn_implementation == attention.NAME:
        # As it was before the engine of another test.
        loaded.model.set_attn_implementation("sdpa")
    return build_engine(choice, loaded.model, loaded.tokenizer, EngineLimits(**limits))


def greedy(engine: Any) -> list[Any]:
    rng = random.Random(4)
    asked = [request(random_prompt(rng, rng.randint(1, 40)), max_tokens=8, seed=i) for i in range(6)]
    return list(zip(asked, run(engine, asked), strict=True))


@pytest.mark.parametrize("choice", ["auto", "inflight"])
def test_a_model_whose_attention_can_be_replaced_is_served_in_flight(tiny: Tiny, choice: EngineChoice) -> None:
    loaded = tiny("llama", seed=SEED)

    engine, name = build(loaded, choice)

    assert (type(engine), name) == (InflightEngine, "inflight")
    assert_varied([completion for _, completion in greedy(engine)])


def test_any_other_model_is_served_in_padded_batches_and_the_log_says_why(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = tiny("bloom", seed=SEED)
    with caplog.at_level(logging.WARNING, "worker.engine.build"):
        engine, name = build(loaded, "auto")

    assert (type(engine), name) == (PaddedEngine, "padded")
    (line,) = [record.getMessage() for record in caplog.records if record.name == "worker.engine.build"]
    assert line.startswith("BloomForCausalLM is served in padded batches, which are slower: ")
    assert line.endswith("its attention cannot be replaced")
    for asked, completion in greedy(engine):
        assert_chosen_alone(loaded.model, asked, completion)


def test_to_ask_for_inflight_for_such_a_model_is_an_error_that_says_what_to_do(tiny: Tiny) -> None:
    with pytest.raises(ModelError, match=r"BloomForCausalLM cannot be served by --engine inflight: .*use"):
        build(tiny("bloom", seed=SEED), "inflight")


def test_padded_is_what_is_asked_for_and_leaves_the_model_as_it_was_loaded(tiny: Tiny) -> None:
    loaded = tiny("llama", seed=SEED + 1)

    engine, name = build(loaded, "padded")

    assert (type(engine), name) == (PaddedEngine, "padded")
    assert describe(engine, loaded.model) == {"attention": "sdpa", "kv_tokens": None, "linear_layers": "as loaded"}


@pytest.mark.parametrize(("choice", "tokens"), [("inflight", 512), ("padded", 32_768)])
def test_each_engine_has_a_budget_of_tokens_of_its_own_where_none_is_named(
    tiny: Tiny, choice: EngineChoice, tokens: int
) -> None:
    loaded = tiny("llama", seed=SEED)

    assert build(loaded, choice)[0].limits.max_batch_tokens == tokens
    assert build(loaded, choice, max_batch_tokens=77)[0].limits.max_batch_tokens == 77


def test_the_room_for_keys_and_values_is_told(tiny: Tiny) -> None:
    loaded = tiny("llama", seed=SEED)

    engine, _ = build(loaded, "inflight", kv_tokens=4321)

    assert describe(engine, loaded.model)["kv_tokens"] == 4321


def test_the_limits_of_a_worker_are_its_options(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    loaded = tiny("llama", seed=SEED + 1)
    options = WorkerOptions("m", "x", engine="padded", max_batch_tokens=99, max_rows=3)
    with caplog.at_level(logging.INFO, "worker.app"):
        engine, name = engine_for(options, loaded)

    assert name == "padded"
    assert (engine.limits.max_rows, engine.limits.max_batch_tokens, engine.limits.max_length) == (3, 99, 512)
    assert "engine: padded (3 rows, 99 tokens a batch)" in caplog.messages


def test_the_doctor_tells_what_a_worker_would_run(tiny: Tiny) -> None:
    source = tiny("llama", seed=SEED + 2).source
    options = WorkerOptions("m", source, device="cpu")

    report, padded = examine(options), examine(replace(options, engine="padded"))

    assert (report["engine"], report["attention"]) == ("inflight", "sdpa over slots")
    assert report["kv_tokens"] >= 512
    assert (padded["engine"], padded["kv_tokens"], padded["linear_layers"]) == ("padded", None, "as loaded")
    assert report["text"] == padded["text"]
    assert (report["parameters"], report["tokens"]) == (padded["parameters"], padded["tokens"])
    assert report["tokens"] > 0
