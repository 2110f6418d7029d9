"""Whatever the model and whoever is beside it: a row's tokens are those of the model alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import pytest
from engine_work import (
    assert_chosen_alone,
    assert_varied,
    generate_alone,
    inflight_for,
    random_prompt,
    random_request,
    request,
    trickle,
)

from worker.engine.inflight import InflightEngine
from worker.engine.request import Completion, Request
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]

#: Every way that the supported families have to see positions and the past.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("gpt2", {}),
    "Llama": ("llama", {}),
    "Qwen2": ("qwen2", {}),
    "Qwen3": ("qwen3", {}),
    "Qwen3-MoE": ("qwen3_moe", {}),
    "Mistral": ("mistral", {}),
    "Mistral, sliding window": ("mistral", {"sliding_window": 8}),
    "Gemma 2, soft-capping and mixed windows": ("gemma2", {"sliding_window": 8, "attn_logit_softcapping": 5.0}),
    "Gemma 3, mixed windows": ("gemma3_text", {"sliding_window": 8}),
    "Phi-3": ("phi3", {}),
    "OLMo 2": ("olmo2", {}),
    "SmolLM3": ("smollm3", {}),
    "StableLM": ("stablelm", {}),
    "OPT": ("opt", {}),
    "GPT-NeoX": ("gpt_neox", {}),
    "GPT-OSS, attention sinks": ("gpt_oss", {"sliding_window": 8}),
}

#: Of those, what sampling is tried on: it comes after the logits, which are the families' own.
SAMPLED = ("GPT-2", "Llama", "Mistral, sliding window", "Gemma 2, soft-capping and mixed windows")

#: Families that no promise names: fewer mixes.
OTHERS = ("Qwen3-MoE", "OPT", "GPT-NeoX", "GPT-OSS, attention sinks")

#: Of each family as many mixes as there are settings, times this.
MIXES, MIXES_OF_OTHERS = 25, 8
LONGEST_OUTPUT = 6

#: Of eight engines: rows, tokens of a step, room for keys and values (a row of 65 tokens needs 64 to grow out of, and
#: 128 to grow into).
LIMITS = (
    *((2, 64, 192), (3, 16, 256), (9, 12, 320), (8, 48, 384)),
    *((7, 33, 448), (1, 50, 640), (9, 64, 1024), (6, 40, 4096)),
)


def engine_with(limits: tuple[int, int, int], loaded: LoadedModel) -> InflightEngine:
    rows, tokens, room = limits
    return inflight_for(loaded, max_rows=rows, max_batch_tokens=tokens, kv_tokens=room)


def pool_of_prompts(rng: random.Random) -> list[list[int]]:
    """Prompts of 1 to 105 tokens; some begin alike, by so much that they share keys and values, or attention too."""
    short, long = random_prompt(rng, 20), random_prompt(rng, 66)
    prompts = [random_prompt(rng, length) for length in (1, 2, 3, 5, 9, 17, 33, 61, 62, 63, 64, 65, 105)]
    prompts += [short + random_prompt(rng, rng.randint(1, 20)) for _ in range(4)]
    return prompts + [long + random_prompt(rng, rng.randint(1, 20)) for _ in range(5)]


def assert_nothing_is_left(engine: InflightEngine) -> None:
    stats = engine.stats()
    assert (engine.rows_in_hand, stats.running_rows, stats.waiting_rows, stats.kv_used_ratio) == (0, 0, 0, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_rows_of_random_mixes_get_the_tokens_of_generate(tiny: Tiny, family: str) -> None:
    kind, options = FAMILIES[family]
    loaded, rng = tiny(kind, **options), random.Random(family)
    prompts = pool_of_prompts(rng)
    alone = [generate_alone(loaded, prompt, LONGEST_OUTPUT) for prompt in prompts]
    assert len({token for tokens in alone for token in tokens}) > 20, "it says the same whatever it is asked"
    preempted = shared = 0

    for limits in LIMITS:
        engine = engine_with(limits, loaded)
        # An answer that is known is not computed again: top_k means nothing to a greedy row, but makes it new.
        mixes = [
            [(rng.randrange(len(prompts)), rng.randint(1, LONGEST_OUTPUT), mix) for _ in range(rng.randint(2, 3))]
            for mix in range(MIXES_OF_OTHERS if family in OTHERS else MIXES)
        ]
        asked = [
            [request(prompts[at], group=rng.choice("ab"), max_tokens=length, top_k=mix) for at, length, mix in rows]
            for rows in mixes
        ]
        answers = trickle(engine, asked, rng)
        for (at, length, _), one, answer in zip(chain(*mixes), chain(*asked), answers, strict=True):
            if answer.token_ids != alone[at][:length]:
                assert_chosen_alone(loaded.model, one, answer)
        assert_nothing_is_left(engine)
        preempted, shared = preempted + engine.stats().preempted_rows, shared + engine.stats().shared_tokens

    assert preempted
    assert shared


@pytest.mark.parametrize("family", SAMPLED)
def test_sampled_rows_get_the_same_tokens_alone_and_in_any_mix(tiny: Tiny, family: str) -> None:
    kind, options = FAMILIES[family]
    loaded, rng = tiny(kind, **options), random.Random(family)
    pool = [random_request(rng, longest_prompt=70) for _ in range(20)]
    pool += samples_of(random_prompt(rng, 90), rng)
    alone = one_at_a_time(loaded, pool)
    for one, answer in zip(pool, alone, strict=True):
        assert_chosen_alone(loaded.model, one, answer)
    assert_varied(alone)

    for limits in LIMITS:
        engine = engine_with(limits, loaded)
        which = rng.sample(range(len(pool)), rng.randint(10, len(pool)))
        answers = trickle(engine, [[pool[at] for at in which[i : i + 3]] for i in range(0, len(which), 3)], rng)
        for at, answer in zip(which, answers, strict=True):
            if answer.token_ids == alone[at].token_ids:
                assert answer.text == alone[at].text
                assert answer.mean_logprob == pytest.approx(alone[at].mean_logprob, abs=1e-3)
            else:
                assert_chosen_alone(loaded.model, pool[at], answer)
        assert_nothing_is_left(engine)


def samples_of(prompt: list[int], rng: random.Random) -> list[Request]:
    """The ``n`` samples of one prompt."""
    seed = rng.getrandbits(63)
    return [request(prompt, seed=seed, sample=i, temperature=1.0, max_tokens=8, logprobs=i == 0) for i in range(5)]


def one_at_a_time(loaded: LoadedModel, requests: Sequence[Request]) -> list[Completion]:
    engine = inflight_for(loaded, max_rows=1)
    answers = []
    for one in requests:
        future = engine.submit(one)
        while engine.step():
            pass
        answers.append(future.result(timeout=0))
    return answers
