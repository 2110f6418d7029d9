"""What goes wrong in a step stays with the row that it belongs to."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import pytest
import torch
from engine_work import inflight_for, random_prompt, request, run
from inflight_work import MARK, Tiny, finish, prompts, steps, tokens_of, watched
from torch import Tensor

from worker.engine import inflight
from worker.engine.inflight import InflightEngine
from worker.engine.loop import EngineDied
from worker.engine.request import Request
from worker.models import LoadedModel


@pytest.fixture
def llama(tiny: Tiny) -> LoadedModel:
    return tiny("llama")


class TestRows:
    def test_an_exception_is_blamed_on_the_row_that_raises_it_alone(self, llama: LoadedModel) -> None:
        asked = [request(prompt, max_tokens=6, seed=1, temperature=0.7) for prompt in prompts(11)]
        want = tokens_of(run(inflight_for(llama), asked))
        guilty = {4, 9}
        for i in guilty:
            asked[i] = request([*asked[i].prompt_ids, MARK], max_tokens=6)

        def refuse_mark(ids: Tensor) -> None:
            if (ids == MARK).any():
                raise ValueError("a bug that this prompt meets")

        engine = watched(llama, refuse_mark, max_rows=8)
        answers = finish(engine, [engine.submit(one) for one in asked])

        for i, answer in enumerate(answers):
            if i in guilty:
                assert answer.error_code == "internal_error"
                assert answer.error_message == "ValueError: a bug that this prompt meets"
            else:
                assert answer.token_ids == want[i]
        assert engine.stats().rows == 11
        assert engine.scheduler.max_rows == 8, "the others are not slowed down for ever"

    def test_while_one_is_looked_for_the_others_do_not_run_one_by_one(self, llama: LoadedModel) -> None:
        asked = [request(prompt, max_tokens=30) for prompt in prompts(32)]
        want = tokens_of(run(inflight_for(llama, max_rows=32), asked))
        # Twice: rows may generate it by themselves.
        asked[20] = request([*asked[20].prompt_ids, MARK, MARK], max_tokens=30)
        passes: list[int] = []

        def refuse_mark(ids: Tensor) -> None:
            passes.append(len(ids))
            if ((ids[1:] == MARK) & (ids[:-1] == MARK)).any():
                raise ValueError("a bug that this prompt meets")

        engine = watched(llama, refuse_mark, max_rows=32)
        answers = finish(engine, [engine.submit(one) for one in asked])

        assert [i for i, answer in enumerate(answers) if answer.error_code] == [20]
        assert all(answer.token_ids == want[i] for i, answer in enumerate(answers) if i != 20)
        assert len(passes) < 3 * 30

    def test_tokens_that_cannot_be_decoded_are_an_error_of_their_row(
        self, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = [request(prompt, max_tokens=4) for prompt in prompts(3)]
        want = tokens_of(run(inflight_for(llama), asked))
        engine = inflight_for(llama)
        futures = [engine.submit(one) for one in asked]
        original = type(llama.tokenizer).decode

        def decode(tokenizer: object, ids: Sequence[int]) -> str:
            if [*ids] == want[1]:
                raise IndexError("piece id is out of range")
            return original(tokenizer, ids)  # type: ignore[arg-type]

        monkeypatch.setattr(type(llama.tokenizer), "decode", decode)
        answers = finish(engine, futures)

        assert [answer.error_code for answer in answers] == [None, "tokenizer_error", None]
        assert "IndexError: piece id is out of range" in (answers[1].error_message or "")

    @pytest.mark.parametrize("count", [1, 2])
    def test_after_the_last_suspect_failed_the_engine_is_what_it_was(self, llama: LoadedModel, count: int) -> None:
        def refuse_mark(ids: Tensor) -> None:
            if (ids == MARK).any():
                raise ValueError("a bug that this prompt meets")

        engine = watched(llama, refuse_mark, max_rows=4)
        run(engine, [request([5 + i, MARK], max_tokens=2) for i in range(count)])
        seen: list[int] = []
        engine._runner._model.get_input_embeddings().register_forward_pre_hook(
            lambda _, args: seen.append(len(args[0][0]))
        )

        run(engine, [request([9, 5 + i], max_tokens=3) for i in range(4)])

        assert seen == [8, 4, 4]

    def test_nan_in_one_row_ends_that_row_alone_and_leaves_its_place_clean(self, tiny: Tiny) -> None:
        loaded = tiny("llama", seed=11)
        asked = [request(prompt, max_tokens=8, seed=1, temperature=0.7) for prompt in prompts(6)]
        want = tokens_of(run(inflight_for(loaded), asked))
        engine = with_nan(loaded, max_rows=3)
        broken = [request([*random_prompt(random.Random(i), 9, MARK), MARK, 9], max_tokens=8) for i in range(4)]
        mixed = [one for pair in zip(asked, [*broken, *broken[:2]], strict=True) for one in pair]

        answers = finish(engine, [engine.submit(one) for one in mixed])

        assert tokens_of(answers[0::2]) == want
        assert [answer.error_code for answer in answers[1::2]] == ["numeric_error"] * 6
        assert answers[1].error_message == "NaN or infinite logits after 0 tokens"

    def test_nan_in_a_prompt_of_several_steps_is_found_in_its_first(self, tiny: Tiny) -> None:
        loaded = tiny("llama", seed=11)
        engine = with_nan(loaded, max_rows=2, max_batch_tokens=16)
        future = engine.submit(request([MARK, *random_prompt(random.Random(1), 200, MARK)], max_tokens=4))

        steps(engine, 1)

        assert future.result(timeout=0).error_code == "numeric_error"
        beside = [request(prompt, max_tokens=6) for prompt in prompts(4)]
        want = tokens_of(run(inflight_for(loaded), beside))
        assert tokens_of(finish(engine, [engine.submit(one) for one in beside])) == want

    def test_nan_beside_a_prompt_that_is_not_at_its_end_harms_neither(self, tiny: Tiny) -> None:
        loaded = tiny("llama", seed=11)
        long = request(random_prompt(random.Random(1), 150, MARK), max_tokens=4)
        want = tokens_of(run(inflight_for(loaded), [long]))
        engine = with_nan(loaded, max_rows=3, max_batch_tokens=16)

        futures = [
            engine.submit(one) for one in (long, request([5, MARK], max_tokens=4), request([MARK], max_tokens=4))
        ]

        answers = finish(engine, futures)
        assert [answer.error_code for answer in answers] == [None, "numeric_error", "numeric_error"]
        assert tokens_of(answers[:1]) == want

    def test_a_failed_device_ends_the_engine_and_everyone_who_waits_hears_it(self, llama: LoadedModel) -> None:
        def fail(ids: Tensor) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        engine = watched(llama, fail, max_rows=2)
        futures = [engine.submit(request(prompt, max_tokens=4)) for prompt in [*prompts(5), *prompts(2)]]

        with pytest.raises(RuntimeError, match="illegal memory access"):
            engine.step()

        futures.append(engine.submit(request([5, 6])))
        for future in futures:
            with pytest.raises(EngineDied, match="illegal memory access"):
                future.result(timeout=0)
        assert isinstance(engine.failure, RuntimeError)
        assert engine.rows_in_hand == 0


def with_nan(loaded: LoadedModel, **limits: int) -> InflightEngine:
    """An engine whose model computes no numbers after MARK."""
    engine = inflight_for(loaded, **limits)
    with torch.no_grad():
        engine._runner._model.get_input_embeddings().weight[MARK] = torch.nan
    return engine


class TestCancel:
    def test_a_row_that_generates_ends_with_what_it_has(self, llama: LoadedModel) -> None:
        asked = [request(prompt, max_tokens=12) for prompt in prompts(3)]
        want = tokens_of(run(inflight_for(llama), asked))
        engine = inflight_for(llama)
        futures = [engine.submit(one) for one in asked]
        steps(engine, 4)

        asked[1].cancelled = True
        answers = finish(engine, futures)

        assert [answer.cancelled for answer in answers] == [False, True, False]
        assert answers[1].token_ids == want[1][:4]
        assert answers[1].error_code is None
        assert (answers[0].token_ids, answers[2].token_ids) == (want[0], want[2])

    def test_a_row_in_the_middle_of_its_prompt_ends_and_its_place_is_free(self, llama: LoadedModel) -> None:
        long, other = request([5] * 100, max_tokens=4), request([7, 8], max_tokens=4)
        want = tokens_of(run(inflight_for(llama), [other]))
        engine = inflight_for(llama, max_rows=1, max_batch_tokens=10)
        futures = [engine.submit(one) for one in (long, other)]
        steps(engine, 3)

        long.cancelled = True
        answers = finish(engine, futures)

        assert (answers[0].cancelled, answers[0].token_ids) == (True, [])
        assert tokens_of(answers[1:]) == want

    def test_those_that_follow_a_cancelled_row_are_computed(self, llama: LoadedModel) -> None:
        twins = [request([5, 6, 7], max_tokens=6) for _ in range(3)]
        want = tokens_of(run(inflight_for(llama), [request([5, 6, 7], max_tokens=6)]))[0]
        engine = inflight_for(llama)
        futures = [engine.submit(one) for one in twins]
        steps(engine, 2)

        twins[0].cancelled = True
        answers = finish(engine, futures)

        assert tokens_of(answers) == [want[:2], want, want]
        assert [answer.repeated for answer in answers] == [False, False, True]

    def test_one_that_follows_ends_and_the_row_that_it_followed_does_not(self, llama: LoadedModel) -> None:
        twins = [request([5, 6, 7], max_tokens=6) for _ in range(3)]
        engine = inflight_for(llama)
        futures = [engine.submit(one) for one in twins]
        steps(engine, 2)
        twins[1].cancelled = True
        steps(engine, 1)

        assert [future.done() for future in futures] == [False, True, False]
        answers = finish(engine, futures)
        assert [answer.cancelled for answer in answers] == [False, True, False]
        assert engine.stats().repeated_rows == 1

    def test_where_many_rows_wait_the_cancelled_are_looked_for_once_in_a_while(
        self, llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inflight, "SCAN_ROWS", 10)
        monkeypatch.setattr(inflight, "SCAN_SECONDS", 3600.0)
        engine = inflight_for(llama, max_rows=2)
        asked = [request([5, 6 + i], max_tokens=6) for i in range(40)]
        futures = [engine.submit(one) for one in asked]
        steps(engine, 1)

        for one in asked:
            one.cancelled = True
        steps(engine, 3)
        assert not any(future.done() for future in futures)

        monkeypatch.setattr(inflight, "SCAN_SECONDS", 0.0)
        answers = finish(engine, futures)
        assert all(answer.cancelled for answer in answers)
        assert sorted(len(answer.token_ids) for answer in answers) == [0] * 38 + [4, 4]


def test_what_failed_is_in_the_log(llama: LoadedModel, caplog: pytest.LogCaptureFixture) -> None:
    def fail(ids: Tensor) -> None:
        raise ValueError("a bug")

    engine = watched(llama, fail)
    asked: list[Request] = [request([5, 6], max_tokens=2)]

    with caplog.at_level(logging.WARNING):
        run(engine, asked)

    assert "a step of 2 tokens of 1 rows failed: ValueError: a bug" in caplog.text
