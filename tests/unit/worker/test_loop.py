"""What every engine does around its steps, whichever it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from engine_work import request, run

from tests.patience import wait_until
from worker.engine.fake import FakeEngine
from worker.engine.inflight import InflightEngine
from worker.engine.loop import EngineDied
from worker.engine.padded import PaddedEngine
from worker.engine.request import EngineLimits
from worker.models import LoadedModel

Make = Callable[..., Any]


@pytest.fixture(params=["fake", "padded", "inflight"])
def make(request: pytest.FixtureRequest, tiny: Callable[..., LoadedModel]) -> Make:
    """``make(max_rows=2)``: an engine that is not started."""

    def engine(**limits: Any) -> Any:
        if request.param == "fake":
            return FakeEngine(EngineLimits(max_length=500, **limits))
        loaded = tiny("llama", seed=31)
        # As it was before the engine that another test made of it.
        loaded.model.set_attn_implementation("sdpa")
        kind = PaddedEngine if request.param == "padded" else InflightEngine
        return kind(loaded.model, loaded.tokenizer, EngineLimits(**limits))

    return engine


def test_a_row_is_in_hand_until_it_has_ended(make: Make) -> None:
    engine = make(max_rows=2)
    asked = [request([5, 6 + i], max_tokens=4) for i in range(5)]
    futures = [engine.submit(one) for one in asked]
    refused = engine.submit(request([]))

    assert refused.result(timeout=0).error_code == "empty_prompt"
    assert engine.rows_in_hand == 5
    while engine.step():
        assert engine.rows_in_hand == sum(not future.done() for future in futures)
    assert engine.rows_in_hand == 0


def test_a_row_that_is_cancelled_while_it_waits_ends_without_a_token_and_the_others_as_ever(make: Make) -> None:
    asked = [request([5, 6 + i], max_tokens=4) for i in range(6)]
    want = [answer.text for answer in run(make(max_rows=2), asked)]
    engine = make(max_rows=2)
    futures = [engine.submit(one) for one in asked]
    for i in (1, 3, 4):
        asked[i].cancelled = True
    while engine.step():
        pass

    answers = [future.result(timeout=0) for future in futures]
    assert [answer.cancelled for answer in answers] == [False, True, False, True, True, False]
    assert [len(answers[i].token_ids) for i in (1, 3, 4)] == [0, 0, 0]
    assert [answers[i].text for i in (0, 2, 5)] == [want[i] for i in (0, 2, 5)]


def test_of_identical_rows_any_may_be_cancelled(make: Make) -> None:
    asked = [request([5, 6, 7], max_tokens=4) for _ in range(4)]
    want = run(make(), asked[:1])[0].text
    for gone in ({0}, {2}, {0, 1}, {1, 3}):
        engine = make()
        asked = [request([5, 6, 7], max_tokens=4) for _ in range(4)]
        futures = [engine.submit(one) for one in asked]
        for i in gone:
            asked[i].cancelled = True
        while engine.step():
            pass

        answers = [future.result(timeout=0) for future in futures]
        assert {i for i, answer in enumerate(answers) if answer.cancelled} == gone
        assert {answer.text for i, answer in enumerate(answers) if i not in gone} == {want}


def test_a_stop_token_ends_the_text_before_it(make: Make) -> None:
    engine = make()
    whole = run(engine, [request([5, 6, 7], max_tokens=12)])[0]
    end = whole.token_ids[7]
    first = whole.token_ids.index(end)

    stopped = run(engine, [request([5, 6, 7], max_tokens=12, stop_token_ids=(399, end))])[0]

    assert stopped.token_ids == whole.token_ids[: first + 1]
    assert (stopped.finish_reason, stopped.error_code) == ("stop", None)
    assert whole.text.startswith(stopped.text)
    assert stopped.text == run(engine, [request([5, 6, 7], max_tokens=max(first, 1))])[0].text[: len(stopped.text)]


def test_close_ends_what_runs_and_what_waits_and_what_comes_later(make: Make) -> None:
    engine = make(max_rows=1)
    futures = [engine.submit(request([5, 6 + i], max_tokens=4)) for i in range(3)]

    engine.close()
    futures.append(engine.submit(request([5, 6])))

    assert [future.result(timeout=0).cancelled for future in futures] == [True] * 4
    assert engine.rows_in_hand == 0


def test_an_engine_that_breaks_tells_everyone_who_waits_and_who_comes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(max_rows=1)
    futures = [engine.submit(request([5, 6 + i], max_tokens=4)) for i in range(3)]

    def broken() -> bool:
        raise KeyError("a bug")

    monkeypatch.setattr(engine, "_work", broken)
    engine.start()

    for future in futures:
        with pytest.raises(EngineDied, match="KeyError: 'a bug'"):
            future.result(timeout=30)
    with pytest.raises(EngineDied):
        engine.submit(request([5, 6])).result(timeout=0)
    assert isinstance(engine.failure, KeyError)
    assert engine.rows_in_hand == 0
    engine.close()


def test_many_threads_submit_while_others_ask_what_is_in_hand(make: Make) -> None:
    engine = make(max_rows=4)
    first = engine.submit(request([5, 6, 7], max_tokens=3))
    texts: dict[int, list[str]] = {}
    most: list[int] = []
    ended = threading.Event()

    def ask(i: int) -> None:
        # Every second row is the same for all threads.
        futures = [engine.submit(request([5, 6, 7 + j % 2 * (i + 1)], max_tokens=3)) for j in range(20)]
        texts[i] = [future.result(timeout=60).text for future in futures]

    def watch() -> None:
        while not ended.is_set():
            engine.stats()
            most.append(engine.rows_in_hand)
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    # All may be over before a watcher among so many threads has its turn: it sees the first row, which waits for that.
    wait_until("the watcher to see a row", lambda: max(most, default=0) > 0)
    engine.start()
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    watcher.join()
    engine.close()

    assert len(texts) == 8
    assert {answers[0] for answers in texts.values()} == {first.result(timeout=0).text}
    assert engine.rows_in_hand == 0
