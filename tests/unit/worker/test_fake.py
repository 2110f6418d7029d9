"""The fake engine keeps the promises of a real one, and needs no torch."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from engine_work import request, run

from worker.engine.fake import FakeEngine


def ask(engine: FakeEngine, text: str, **options: object) -> object:
    return request(engine.tokenizer.encode(text), **options)  # type: ignore[arg-type]


def test_answers_depend_on_prompt_seed_and_sample_alone() -> None:
    engine = FakeEngine()
    asked = [
        ask(engine, text, seed=seed, sample=sample, temperature=1.0)
        for text in ("tea", "wind") for seed in (1, 2) for sample in (0, 1)
    ]  # fmt: skip

    first = [answer.text for answer in run(engine, asked)]

    assert len(set(first)) == 8
    assert [answer.text for answer in run(FakeEngine(), asked)] == first


def test_limits_and_stop_strings_hold() -> None:
    engine = FakeEngine()
    whole = run(engine, [ask(engine, "tea")])[0]
    assert whole.finish_reason == "stop"

    cut, stopped = run(engine, [ask(engine, "tea", max_tokens=5), ask(engine, "tea", stop=(whole.text[7:10],))])

    assert (cut.text, cut.finish_reason) == (whole.text[:5], "length")
    assert whole.text.startswith(stopped.text)
    assert stopped.text == whole.text[: whole.text.index(whole.text[7:10])]


def test_a_marked_row_fails_alone() -> None:
    engine = FakeEngine(fail_on="poison")

    codes = [answer.error_code for answer in run(engine, [ask(engine, text) for text in ("a", "a poison", "b")])]

    assert codes == [None, "internal_error", None]


def test_it_dies_like_a_device() -> None:
    engine = FakeEngine(die_on="poison")
    futures = [engine.submit(ask(engine, text)) for text in ("poison", "b")]

    with pytest.raises(RuntimeError, match="CUDA error"):
        engine.step()

    assert all(future.exception(timeout=0) for future in futures)


def test_it_takes_the_time_that_it_is_told_to() -> None:
    engine = FakeEngine(tokens_per_second=100)
    engine.start()
    started = time.monotonic()

    engine.submit(ask(engine, "tea", max_tokens=10)).result(timeout=60)

    assert time.monotonic() - started >= 0.1
    engine.close()
    assert engine.stats().completion_tokens == 10


def test_the_parts_that_need_no_torch_import_none() -> None:
    code = (
        "import sys, worker.engine.fake, worker.engine.padded_scheduler, worker.engine.scheduler, worker.engine.twins\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'celery', 'redis')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
