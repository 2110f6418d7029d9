"""What goes wrong inside a batch stays with the row that it belongs to."""

from __future__ import annotations

import functools
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_work import engine_for, random_prompt, request, run

from worker.engine import padded
from worker.engine.loop import EngineDied
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]

#: A token that the tests make the model fail on.
MARK = 333


@pytest.fixture
def llama(tiny: Tiny) -> LoadedModel:
    return tiny("llama")


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [random_prompt(rng, rng.randint(3, 12), vocabulary=MARK) for _ in range(count)]


@pytest.fixture
def on_forward(llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[torch.Tensor], None]], None]:
    """``on_forward(check)`` calls ``check(input_ids)`` before every pass of the model."""

    def install(check: Callable[[torch.Tensor], None]) -> None:
        forward = llama.model.forward

        @functools.wraps(forward)
        def checked(*args: Any, **kwargs: Any) -> Any:
            check(kwargs["input_ids"])
            return forward(*args, **kwargs)

        monkeypatch.setattr(llama.model, "forward", checked)

    return install


def test_out_of_memory_halves_the_batches_and_is_remembered(llama: LoadedModel, on_forward: Any) -> None:
    asked = [request(prompt, max_tokens=5, seed=1) for prompt in prompts(16)]
    want = [answer.text for answer in run(engine_for(llama), asked)]
    failures, sizes = [], []

    def only_four_fit(ids: torch.Tensor) -> None:
        if len(ids) > 4:
            failures.append(len(ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        sizes.append(len(ids))

    engine = engine_for(llama)
    on_forward(only_four_fit)
    answers = run(engine, asked)

    assert [answer.text for answer in answers] == want
    assert 1 <= len(failures) <= 4
    assert max(sizes) >= 2
    failures.clear()
    assert [answer.text for answer in run(engine, asked)] == want
    assert not failures


def test_a_row_that_does_not_fit_alone_is_an_error_and_its_neighbours_are_not(
    llama: LoadedModel, on_forward: Any
) -> None:
    asked = [request(prompt, max_tokens=5) for prompt in [*prompts(5), [5] * 100]]
    engine = engine_for(llama)

    def short_ones_fit(ids: torch.Tensor) -> None:
        if ids.shape[1] >= 100:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    on_forward(short_ones_fit)
    answers = run(engine, asked)

    assert [answer.error_code for answer in answers] == [None] * 5 + ["out_of_memory"]
    assert answers[5].finish_reason == "error"
    assert "DefaultCPUAllocator" in (answers[5].error_message or "")
    assert engine.stats().rows == 6


def test_memory_that_another_process_held_for_a_moment_costs_no_row(llama: LoadedModel, on_forward: Any) -> None:
    engine = engine_for(llama)
    left = [1]

    def fail_once(ids: torch.Tensor) -> None:
        if left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")

    on_forward(fail_once)
    answer = run(engine, [request([5, 6], max_tokens=3)])[0]

    assert answer.error_code is None
    assert not left


def test_nan_in_one_row_ends_that_row_alone(tiny: Tiny) -> None:
    loaded = tiny("llama", seed=11)
    asked = [request(prompt, max_tokens=8, seed=1, temperature=0.7) for prompt in prompts(6)]
    want = run(engine_for(loaded), asked)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[MARK] = torch.nan
    asked[2] = request([*asked[2].prompt_ids, MARK, 9], max_tokens=8)

    answers = run(engine_for(loaded), asked)

    assert answers[2].error_code == "numeric_error"
    assert answers[2].finish_reason == "error"
    others = [0, 1, 3, 4, 5]
    assert [answers[i].text for i in others] == [want[i].text for i in others]


def test_an_exception_is_blamed_on_the_row_that_raises_it_alone(llama: LoadedModel, on_forward: Any) -> None:
    asked = [request(prompt, max_tokens=6, seed=1, temperature=0.7) for prompt in prompts(11)]
    want = run(engine_for(llama), asked)
    guilty = {4, 9}
    for i in guilty:
        asked[i] = request([*asked[i].prompt_ids, MARK], max_tokens=6)
    engine = engine_for(llama)

    def refuse_mark(ids: torch.Tensor) -> None:
        if (ids == MARK).any():
            raise ValueError("a bug that this prompt meets")

    on_forward(refuse_mark)
    answers = run(engine, asked)

    for i, answer in enumerate(answers):
        if i in guilty:
            assert answer.error_code == "internal_error"
            assert answer.error_message == "ValueError: a bug that this prompt meets"
        else:
            assert answer.text == want[i].text
    assert engine.stats().rows == 11


def test_a_failed_device_ends_the_engine_and_everyone_who_waits_hears_it(llama: LoadedModel, on_forward: Any) -> None:
    engine = engine_for(llama, max_rows=2)
    on_forward(lambda ids: _raise(RuntimeError("CUDA error: an illegal memory access was encountered")))
    futures = [engine.submit(request(prompt, max_tokens=4)) for prompt in prompts(5)]

    with pytest.raises(RuntimeError, match="illegal memory access"):
        engine.step()

    futures.append(engine.submit(request([5, 6])))
    for future in futures:
        with pytest.raises(EngineDied, match="illegal memory access"):
            future.result(timeout=0)
    assert isinstance(engine.failure, RuntimeError)
    assert engine.rows_in_hand == 0


@pytest.mark.parametrize("broken", ["next_batch", "remove", "__iter__"])
def test_an_engine_that_breaks_between_batches_says_so_too(
    llama: LoadedModel, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    engine = engine_for(llama, max_rows=1)
    asked = [request([5, 6 + i], max_tokens=3) for i in range(4)]
    # Ending the waiting row takes it out by the way that is broken; it alone ends in order.
    asked[3].cancelled = broken == "remove"
    futures = [engine.submit(one) for one in asked]
    kind = type(engine.scheduler)
    with monkeypatch.context() as patch:
        if broken == "__iter__":
            whole = kind.__iter__
            tries = iter([True])
            patch.setattr(kind, broken, lambda self: _raise(KeyError("a bug")) if next(tries, None) else whole(self))
        else:
            patch.setattr(kind, broken, lambda *_: _raise(KeyError("a bug")))
        engine.start()

        for future in futures[:3]:
            with pytest.raises(EngineDied, match="KeyError: 'a bug'"):
                future.result(timeout=30)
    assert isinstance(engine.failure, KeyError)
    assert engine.rows_in_hand == 0
    assert futures[3].done()
    with pytest.raises(EngineDied):
        engine.submit(request([5, 6])).result(timeout=0)
    engine.close()


def _raise(error: Exception) -> None:
    raise error


def test_a_cancelled_row_ends_at_the_next_step_with_what_it_has(llama: LoadedModel, on_forward: Any) -> None:
    asked = [request(prompt, max_tokens=12) for prompt in prompts(3)]
    want = run(engine_for(llama), asked)
    engine = engine_for(llama)
    passes = []

    def cancel_at_the_fifth_pass(ids: torch.Tensor) -> None:
        passes.append(len(ids))
        asked[1].cancelled = len(passes) >= 5

    on_forward(cancel_at_the_fifth_pass)
    answers = run(engine, asked)

    assert [answer.cancelled for answer in answers] == [False, True, False]
    assert answers[1].token_ids == want[1].token_ids[:4]
    assert answers[1].error_code is None
    assert answers[0].text == want[0].text


def test_a_waiting_row_that_is_cancelled_does_not_wait_for_the_running_batch(
    llama: LoadedModel, on_forward: Any
) -> None:
    engine = engine_for(llama, max_rows=1)
    running = engine.submit(request([5, 6], max_tokens=20))
    later = request([7, 8], max_tokens=4)
    waiting = engine.submit(later)
    seen = []

    def cancel_while_running(ids: torch.Tensor) -> None:
        seen.append(waiting.done())
        later.cancelled = True

    on_forward(cancel_while_running)
    engine.step()

    assert running.done()
    assert waiting.result(timeout=0).cancelled
    assert seen[0] is False
    assert seen[-1] is True


def test_where_many_rows_wait_the_cancelled_are_looked_for_once_in_a_while(
    llama: LoadedModel, on_forward: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padded, "SCAN_ROWS", 10)
    monkeypatch.setattr(padded, "SCAN_SECONDS", 3600.0)
    engine = engine_for(llama, max_rows=2)
    asked = [request([5, 6 + i], max_tokens=20) for i in range(40)]
    futures = [engine.submit(one) for one in asked]
    kind, scans, passes = type(engine.scheduler), [], []
    whole = kind.__iter__

    def counted(waiting: Any) -> Any:
        scans.append(len(waiting))
        return whole(waiting)

    monkeypatch.setattr(kind, "__iter__", counted)

    def cancel_at_the_fifth_pass(ids: torch.Tensor) -> None:
        passes.append(len(ids))
        asked[1].cancelled = len(passes) >= 5

    on_forward(cancel_at_the_fifth_pass)
    engine.step()

    assert len(passes) == 20
    assert len(scans) == 1
    assert len(futures[1].result(timeout=0).token_ids) == 4

    for one in asked[2:]:
        one.cancelled = True
    engine.step()

    assert all(future.result(timeout=0).cancelled for future in futures[2:])
    assert (len(passes), len(scans), engine.rows_in_hand) == (20, 2, 0)


class TestThread:
    def test_many_threads_can_submit(self, llama: LoadedModel) -> None:
        engine = engine_for(llama, max_rows=4)
        engine.start()
        texts: dict[int, str] = {}

        def ask(i: int) -> None:
            ids = llama.tokenizer.encode(f"the bag number {i}")
            texts[i] = engine.submit(request(ids, max_tokens=4)).result(timeout=60).text

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        engine.close()

        assert len(texts) == 12
        assert engine.stats().rows == 12

    def test_close_ends_what_runs_and_what_waits_as_cancelled(self, llama: LoadedModel) -> None:
        engine = engine_for(llama, max_rows=1)
        futures = [engine.submit(request([5, 6 + i], max_tokens=480)) for i in range(3)]
        engine.start()
        deadline = time.monotonic() + 60
        while engine.stats().steps < 3 and time.monotonic() < deadline:
            time.sleep(0.005)

        engine.close()
        futures.append(engine.submit(request([5, 6])))

        answers = [future.result(timeout=0) for future in futures]
        assert all(answer.cancelled for answer in answers[-2:])
        assert engine.rows_in_hand == 0
