"""Padded batches: rows that share one get what the model gives them alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from engine_work import (
    NEAR_TIE,
    assert_chosen_alone,
    assert_varied,
    engine_for,
    logits_alone,
    random_prompt,
    random_request,
    request,
    run,
)

from tests.models import KINDS
from worker.engine.request import Request
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]

#: The kinds that are held to the most; the others differ in how they see positions and the past.
MAIN_KINDS = ("gpt2", "llama", "qwen2", "mistral")


@pytest.fixture
def llama(tiny: Tiny) -> LoadedModel:
    return tiny("llama")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_random_mixes_get_the_tokens_that_they_get_alone(tiny: Tiny, kind: str) -> None:
    loaded = tiny(kind)
    engine = engine_for(loaded, max_rows=8)
    rng = random.Random(kind)
    completions = []
    for _ in range(40 if kind in MAIN_KINDS else 12):
        asked = [random_request(rng) for _ in range(rng.randint(2, 4))]
        answers = run(engine, asked)
        for one, answer in zip(asked, answers, strict=True):
            assert_chosen_alone(loaded.model, one, answer)
        completions += answers

    assert_varied(completions)
    assert engine.pads, "this kind of model can be padded"
    assert engine.stats().rows == len(completions)


def generate_alone(loaded: LoadedModel, one: Request) -> list[int]:
    eos = loaded.tokenizer.eos_id
    ids = torch.tensor([one.prompt_ids])
    out = loaded.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=one.params.max_tokens,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    return out[0, len(one.prompt_ids) :].tolist()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("qwen2", {}),
        ("mistral", {}),
        ("mistral", {"sliding_window": 8}),
        ("gemma2", {"sliding_window": 8}),
    ],
)
def test_greedy_rows_equal_generate_of_the_prompt_alone(tiny: Tiny, kind: str, options: dict[str, int]) -> None:
    loaded = tiny(kind, **options)
    rng = random.Random(1)
    asked = [request(random_prompt(rng, rng.randint(1, 60)), max_tokens=rng.randint(1, 24)) for _ in range(12)]

    completions = run(engine_for(loaded, max_rows=6), asked)

    for one, completion in zip(asked, completions, strict=True):
        alone = generate_alone(loaded, one)
        if completion.token_ids != alone:
            assert _margin_where_they_part(loaded, one, completion.token_ids, alone) < NEAR_TIE
    assert_varied(completions)


def _margin_where_they_part(loaded: LoadedModel, one: Request, left: list[int], right: list[int]) -> float:
    at = next(i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
    best, second = logits_alone(loaded.model, [*one.prompt_ids, *left[:at]])[-1].topk(2).values.tolist()
    return best - second


def test_a_model_that_padding_disturbs_gets_batches_of_equal_prompts(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = tiny("gpt2", seed=3)
    sizes: list[tuple[int, ...]] = []
    generate = loaded.model.generate

    def without_mask(ids: torch.Tensor, attention_mask: torch.Tensor, **options: object) -> torch.Tensor:
        sizes.append(tuple(ids.shape))
        return generate(ids, attention_mask=torch.ones_like(attention_mask), **options)

    monkeypatch.setattr(loaded.model, "generate", without_mask)
    engine = engine_for(loaded)
    rng = random.Random(2)
    asked = [request(random_prompt(rng, length), max_tokens=6) for length in (3, 5, 9, 5, 3, 5)]
    sizes.clear()

    completions = run(engine, asked)

    assert not engine.pads
    assert sorted(sizes) == [(1, 9), (2, 3), (3, 5)]
    for one, completion in zip(asked, completions, strict=True):
        assert_chosen_alone(loaded.model, one, completion)


def test_the_text_of_a_sampled_row_is_the_same_alone_and_in_any_batch(llama: LoadedModel) -> None:
    rng = random.Random(5)
    one = random_prompt(rng, 9)
    row = {"seed": 77, "max_tokens": 30, "temperature": 1.0}
    alone = run(engine_for(llama), [request(one, **row)])[0]

    for _ in range(5):
        others = [random_request(rng) for _ in range(7)]
        beside = run(engine_for(llama, max_rows=8), [*others, request(one, **row)])[-1]
        assert beside.text == alone.text
        assert beside.token_ids == alone.token_ids


def test_samples_and_seeds_differ_and_repeat(llama: LoadedModel) -> None:
    prompt = random_prompt(random.Random(6), 12)
    keys = [(seed, sample) for seed in (1, 2, 2**62 + 1) for sample in range(4)]

    def texts() -> list[str]:
        asked = [request(prompt, seed=seed, sample=sample, temperature=1.0, max_tokens=16) for seed, sample in keys]
        return [completion.text for completion in run(engine_for(llama, max_rows=5), asked)]

    first = texts()
    assert len(set(first)) == len(keys)
    assert texts() == first


def test_what_the_models_folder_sets_for_generation_changes_nothing_but_the_end(tiny: Tiny) -> None:
    rng = random.Random(7)
    plain, prompt = tiny("llama", seed=7), random_prompt(rng, 10)
    want = run(engine_for(plain), [request(prompt, max_tokens=20, seed=3)])[0]
    stubborn = tiny("llama", seed=7, tie_word_embeddings=False)
    end = want.token_ids[7]
    settings = stubborn.model.generation_config
    settings.update(
        do_sample=True, top_k=2, temperature=0.1, repetition_penalty=5.0, suppress_tokens=[want.token_ids[0]],
        forced_eos_token_id=9, min_new_tokens=20, max_length=3, num_beams=4, eos_token_id=[2, end],
    )  # fmt: skip

    got = run(engine_for(stubborn), [request(prompt, max_tokens=20, seed=3)])[0]

    cut = want.token_ids.index(end) + 1
    assert got.token_ids == want.token_ids[:cut]
    assert got.finish_reason == "stop"
    assert got.text == stubborn.tokenizer.decode(want.token_ids[: cut - 1])


def test_stats_count_rows_tokens_and_padding(llama: LoadedModel) -> None:
    engine = engine_for(llama)
    rng = random.Random(9)
    asked = [request(random_prompt(rng, length), max_tokens=5, seed=1) for length in (4, 12)]

    answers = run(engine, asked)

    stats = engine.stats()
    generated = sum(len(answer.token_ids) for answer in answers)
    assert (stats.rows, stats.prompt_tokens, stats.completion_tokens) == (2, 16, generated)
    assert stats.steps == max(len(answer.token_ids) for answer in answers)
    assert (stats.running_rows, stats.waiting_rows, engine.rows_in_hand) == (0, 0, 0)
    positions = 2 * (12 + stats.steps - 1)
    assert stats.padding_ratio == pytest.approx(1 - (16 + generated - 2) / positions)
    assert stats.step_seconds > 0
