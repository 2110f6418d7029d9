"""A device that runs out of memory costs time, not rows."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from engine_work import inflight_for, request, run
from inflight_work import MARK, Tiny, finish, prompts, steps, tokens_of, watched
from torch import Tensor

from worker.models import LoadedModel


@pytest.fixture
def llama(tiny: Tiny) -> LoadedModel:
    return tiny("llama")


class TestOutOfMemory:
    def test_it_halves_the_steps_and_that_is_remembered(self, llama: LoadedModel) -> None:
        asked = [request(prompt, max_tokens=5) for prompt in prompts(16)]
        want = tokens_of(run(inflight_for(llama), asked))
        failures: list[int] = []
        sizes: list[int] = []

        def little_fits(ids: Tensor) -> None:
            if len(ids) > 30:
                failures.append(len(ids))
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            sizes.append(len(ids))

        engine = watched(llama, little_fits)
        answers = finish(engine, [engine.submit(one) for one in asked])

        assert tokens_of(answers) == want
        assert 1 <= len(failures) <= 3
        assert max(sizes) > 15
        failures.clear()
        again = [request(one.prompt_ids, max_tokens=5, top_k=1) for one in asked]
        assert tokens_of(run(engine, again)) == want
        assert not failures

    def test_rows_that_have_begun_go_on_with_the_tokens_that_they_have(self, llama: LoadedModel) -> None:
        asked = [request(prompt, max_tokens=12, repetition_penalty=1.3, temperature=0.8) for prompt in prompts(6)]
        want = tokens_of(run(inflight_for(llama), asked))
        passes: list[int] = []

        def fail_at_the_sixth(ids: Tensor) -> None:
            passes.append(len(ids))
            if len(passes) == 6:
                raise torch.OutOfMemoryError("CUDA out of memory")

        engine = watched(llama, fail_at_the_sixth)
        answers = finish(engine, [engine.submit(one) for one in asked])

        assert tokens_of(answers) == want
        assert engine.stats().completion_tokens == sum(map(len, want))

    def test_a_long_prompt_alone_costs_smaller_steps_and_no_rows(self, llama: LoadedModel) -> None:
        long = request([5, 6] * 100, max_tokens=4)
        want = tokens_of(run(inflight_for(llama), [long]))
        failures: list[int] = []

        def little_fits(ids: Tensor) -> None:
            if len(ids) > 60:
                failures.append(len(ids))
                raise torch.OutOfMemoryError("CUDA out of memory")

        engine = watched(llama, little_fits)

        assert tokens_of(finish(engine, [engine.submit(long)])) == want
        assert failures == [200, 100]
        assert engine.scheduler.max_step_tokens == 50
        assert engine.scheduler.max_rows == 50

    def test_a_row_that_does_not_fit_alone_is_an_error_and_its_neighbours_are_not(self, llama: LoadedModel) -> None:
        asked = [request(prompt, max_tokens=5) for prompt in [*prompts(5), [MARK, *range(5, 105)]]]
        want = tokens_of(run(inflight_for(llama), asked[:5]))

        def without_the_mark_it_fits(ids: Tensor) -> None:
            if (ids == MARK).any():
                raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

        engine = watched(llama, without_the_mark_it_fits, max_rows=8, max_batch_tokens=200)
        budget = engine.backend.cache.budget
        answers = finish(engine, [engine.submit(one) for one in asked])

        assert [answer.error_code for answer in answers] == [None] * 5 + ["out_of_memory"]
        assert tokens_of(answers[:5]) == want
        assert answers[5].finish_reason == "error"
        assert "DefaultCPUAllocator" in (answers[5].error_message or "")
        assert engine.stats().rows == 6
        assert engine.scheduler.max_step_tokens == 200, "it was that row, not the size of the steps"
        assert engine.scheduler.max_rows == 8
        assert engine.backend.cache.budget == budget, "nor what the others hold"

    def test_rows_that_only_generate_say_nothing_about_the_tokens_of_a_step(self, llama: LoadedModel) -> None:
        asked = [request(prompt, max_tokens=6) for prompt in prompts(8)]
        want = tokens_of(run(inflight_for(llama), asked))

        def few_rows_fit(ids: Tensor) -> None:
            if len(ids) == 8:
                raise torch.OutOfMemoryError("CUDA out of memory")

        engine = watched(llama, few_rows_fit, max_rows=8, max_batch_tokens=200)

        assert tokens_of(finish(engine, [engine.submit(one) for one in asked])) == want
        assert (engine.scheduler.max_rows, engine.scheduler.max_step_tokens) == (4, 200)

    def test_memory_that_another_process_held_for_a_moment_costs_nothing(self, llama: LoadedModel) -> None:
        left = [1]

        def fail_once(ids: Tensor) -> None:
            if left:
                left.pop()
                raise torch.OutOfMemoryError("CUDA out of memory")

        engine = watched(llama, fail_once, max_rows=8, max_batch_tokens=100)
        answer = finish(engine, [engine.submit(request([5, 6], max_tokens=3))])[0]

        assert answer.error_code is None
        assert not left
        assert (engine.scheduler.max_rows, engine.scheduler.max_step_tokens) == (8, 100)

    def test_the_memory_of_a_failed_step_is_given_back_before_the_next(self, llama: LoadedModel) -> None:
        arenas: list[weakref.ref[Tensor]] = []
        alive: list[bool] = []

        def fail_at_the_third(ids: Tensor) -> None:
            backend = engine.backend
            if len(arenas) < 3:
                arenas.append(weakref.ref(next(iter(backend._arenas.values())).keys))  # type: ignore[attr-defined]
                if len(arenas) == 3:
                    raise torch.OutOfMemoryError("CUDA out of memory")

        engine = watched(llama, fail_at_the_third)
        future = engine.submit(request([5, 6], max_tokens=8))
        steps(engine, 3)
        gc.collect()
        alive += [ref() is not None for ref in arenas]

        assert alive == [False] * 3
        assert len(finish(engine, [future])[0].token_ids) == 8

    def test_a_prompt_that_the_cache_has_no_room_for_is_an_error_at_once(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama, kv_tokens=192)

        short, long = run(engine, [request([5, 6], max_tokens=4), request([7] * 200, max_tokens=4)])

        assert (short.error_code, long.error_code) == (None, "out_of_memory")
        assert long.error_message == "200 tokens do not fit into the memory for keys and values"

    def test_a_row_that_outgrows_the_cache_is_an_error_then(self, llama: LoadedModel) -> None:
        engine = inflight_for(llama, kv_tokens=192)

        short, long = run(engine, [request([5, 6], max_tokens=4), request([7] * 120, max_tokens=40)])

        assert (short.error_code, long.error_code) == (None, "out_of_memory")
        assert engine.stats().kv_used_ratio == 0
