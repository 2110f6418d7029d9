"""What the in-flight engine does with requests, beyond what it says for them."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from engine_work import (
    assert_chosen_alone,
    inflight_for,
    logits_alone,
    random_prompt,
    random_request,
    request,
    run,
)

from worker.engine.request import Completion
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]


@pytest.fixture
def llama(tiny: Tiny) -> LoadedModel:
    return tiny("llama")


def tokens_of(completions: list[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


class TestSteps:
    def test_as_a_row_ends_another_takes_its_place_at_the_next_step(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama, max_rows=2)
        lengths = (9, 5, 4)
        answers = run(engine, [request([5 + i], max_tokens=length) for i, length in enumerate(lengths)])

        assert [len(answer.token_ids) for answer in answers] == [*lengths]
        assert engine.stats().steps == 9

    def test_a_prompt_longer_than_a_step_is_computed_in_several(self, llama: LoadedModel) -> None:
        prompt = random_prompt(random.Random(1), 100)
        whole = run(inflight_for(llama), [request(prompt, max_tokens=4)])
        engine = inflight_for(llama, max_rows=4, max_batch_tokens=16)

        assert tokens_of(run(engine, [request(prompt, max_tokens=4)])) == tokens_of(whole)
        assert engine.stats().steps == 7 + 3

    def test_rows_that_generate_do_not_wait_for_a_long_prompt(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama, max_rows=4, max_batch_tokens=16)
        short = engine.submit(request([5, 6], max_tokens=5))
        engine.step()
        long = engine.submit(request([7] * 200, max_tokens=2))
        for _ in range(4):
            engine.step()

        assert short.done()
        assert not long.done()
        while engine.step():
            pass
        assert long.done()

    def test_a_model_at_rest_has_nothing_to_do(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama)

        assert not engine.step()
        run(engine, [request([5], max_tokens=1)])
        assert not engine.step()
        assert engine.stats().steps == 1

    def test_thousands_of_rows_wait_and_all_of_them_end(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama, max_rows=64, max_batch_tokens=256)
        asked = [request([5 + i % 300, 5 + i // 300], max_tokens=1 + i % 2) for i in range(3000)]

        answers = run(engine, asked)

        for one, answer in zip(asked, answers, strict=True):
            assert len(answer.token_ids) == one.params.max_tokens or answer.finish_reason == "stop"
        assert engine.stats().rows == 3000
        assert engine.stats().steps < 3 * 3000 // 64


class TestSharing:
    @pytest.mark.parametrize(
        ("kind", "options"), [("gpt2", {}), ("llama", {}), ("mistral", {"sliding_window": 8}), ("gemma2", {})]
    )
    def test_rows_of_one_template_compute_it_once(self, tiny: Tiny, kind: str, options: dict[str, int]) -> None:
        loaded, rng = tiny(kind, **options), random.Random(1)
        template = random_prompt(rng, 80)
        asked = [request(template + random_prompt(rng, 1 + i), max_tokens=8, seed=i) for i in range(7)]
        # One that begins otherwise comes and goes among them.
        asked.insert(3, request(random_prompt(rng, 90), max_tokens=3))
        engine = inflight_for(loaded)

        answers = run(engine, asked)

        for one, answer in zip(asked, answers, strict=True):
            assert_chosen_alone(loaded.model, one, answer)
        assert engine.stats().shared_tokens == 6 * 80
        assert sorted(answer.shared_tokens for answer in answers) == [0, 0] + [80] * 6

    def test_the_samples_of_a_prompt_compute_it_once(self, llama: LoadedModel) -> None:
        prompt = random_prompt(random.Random(2), 50)
        asked = [request(prompt, sample=i, seed=3, temperature=1.0, max_tokens=6) for i in range(4)]
        engine = inflight_for(llama)

        answers = run(engine, asked)

        for one, answer in zip(asked, answers, strict=True):
            assert_chosen_alone(llama.model, one, answer)
        assert len({tuple(answer.token_ids) for answer in answers}) == 4
        assert engine.stats().shared_tokens == 3 * 49

    def test_identical_greedy_requests_are_computed_once(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama)

        answers = run(engine, [request([5, 6, 7], seed=i, max_tokens=6) for i in range(5)])

        assert len({tuple(answer.token_ids) for answer in answers}) == 1
        assert [answer.repeated for answer in answers] == [False, True, True, True, True]
        stats = engine.stats()
        assert (stats.rows, stats.repeated_rows, stats.completion_tokens) == (1, 4, 6)
        assert run(engine, [request([5, 6, 7], max_tokens=6)])[0].repeated
        assert engine.stats().steps == 6

    def test_sampled_requests_are_the_same_only_with_the_same_seed(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama)
        keys = [(1, 0), (2, 0), (1, 1), (1, 0)]

        answers = run(
            engine,
            [request([5, 6, 7], seed=s, sample=n, temperature=1.0, max_tokens=12) for s, n in keys],
        )

        assert [answer.repeated for answer in answers] == [False, False, False, True]
        assert len({tuple(answer.token_ids) for answer in answers}) == 3


class TestMemory:
    def test_rows_that_have_to_make_room_begin_again_and_lose_no_token(self, llama: LoadedModel) -> None:
        rng = random.Random(4)
        asked = [request(random_prompt(rng, 60), max_tokens=20, temperature=0.8, seed=i) for i in range(6)]
        want = tokens_of(run(inflight_for(llama), asked))
        engine = inflight_for(llama, kv_tokens=320)

        assert tokens_of(run(engine, asked)) == want
        stats = engine.stats()
        assert stats.preempted_rows > 0
        assert (stats.rows, stats.prompt_tokens) == (6, 360)
        assert stats.completion_tokens == sum(map(len, want))

    def test_what_the_cache_holds_is_told(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama, kv_tokens=640, max_rows=8)
        futures = [engine.submit(request([5 + i] * 3, max_tokens=4)) for i in range(5)]
        engine.step()

        stats = engine.stats()
        assert stats.kv_used_ratio == pytest.approx(0.5)
        assert (stats.running_rows, stats.waiting_rows, engine.rows_in_hand) == (5, 0, 5)
        while engine.step():
            pass
        assert all(future.done() for future in futures)
        assert engine.stats().kv_used_ratio == 0


def test_stats_add_up_over_rows_of_every_kind(llama: LoadedModel) -> None:
    rng = random.Random(9)
    engine = inflight_for(llama, max_rows=4, max_batch_tokens=24, kv_tokens=448)
    asked = [random_request(rng, longest_prompt=70) for _ in range(20)]

    answers = run(engine, asked)

    stats = engine.stats()
    assert (stats.rows, stats.repeated_rows) == (20, 0)
    assert stats.prompt_tokens == sum(len(one.prompt_ids) for one in asked)
    assert stats.completion_tokens == sum(len(answer.token_ids) for answer in answers)
    assert (stats.running_rows, stats.waiting_rows, engine.rows_in_hand) == (0, 0, 0)
    assert 0 < stats.steps <= stats.prompt_tokens + stats.completion_tokens
    assert stats.step_seconds > 0


def test_rows_in_bfloat16_are_chosen_by_its_logits(llama: LoadedModel) -> None:
    half = replace(llama, model=deepcopy(llama.model).to(torch.bfloat16))
    asked = [request([5 + i, 6], max_tokens=6) for i in range(5)]

    answers = run(inflight_for(half), asked)

    for one, answer in zip(asked, answers, strict=True):
        logits = logits_alone(half.model, [*one.prompt_ids, *answer.token_ids])[1:-1]
        chosen = logits.gather(-1, torch.tensor(answer.token_ids)[:, None]).squeeze(-1)
        # 8 bits of mantissa, and rounding in another order.
        assert (logits.amax(-1) - chosen).max() <= 0.1 * logits.std()
