"""Promptmill's own engines, driven as the worker drives them: submit everything, then step until nothing is left."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import wraps
from importlib import import_module
from typing import Any

from bench_errors import BenchError

from engine_bench.contenders import Case, Runner
from engine_bench.transformers_contenders import WARM_UP, load
from engine_bench.workloads import Request
from jobs.spec import SamplingParams
from worker.engine.request import Engine, EngineLimits
from worker.engine.request import Request as EngineRequest


class NoText:
    """A tokenizer for ids that stand for nothing: no end token, and nothing to decode."""

    special_ids: dict[str, int] = {}  # noqa: RUF012 - constant
    pad_id = 0
    eos_id = None

    def decode(self, ids: Sequence[int]) -> str:
        return ""


@contextmanager
def padded(case: Case) -> Iterator[Runner]:
    longest_prompt = max(len(request.prompt_ids) for request in case.requests)
    longest_output = max(request.output_tokens for request in case.requests)
    # The number of rows is the bound that is compared, not the budget of positions.
    positions = case.rows * (longest_prompt + longest_output)
    limits = EngineLimits(max_rows=case.rows, max_batch_tokens=positions)
    with _opened(case, import_module("worker.engine.padded").PaddedEngine, limits) as runner:
        yield runner


@contextmanager
def inflight(case: Case) -> Iterator[Runner]:
    limits = EngineLimits(max_rows=case.rows)
    with _opened(case, import_module("worker.engine.inflight").InflightEngine, limits) as runner:
        yield runner


@contextmanager
def _opened(case: Case, engine_class: Any, limits: EngineLimits) -> Iterator[Runner]:
    model = load(case)
    engine = engine_class(model, NoText(), limits)
    clock = _ForwardClock(model)
    try:
        _generate(engine, WARM_UP)
        yield Runner(lambda: _generate(engine, case.requests), lambda: _numbers(engine, clock))
    finally:
        engine.close()


def _generate(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    futures = [engine.submit(_as_job_row(request, i)) for i, request in enumerate(requests)]
    while engine.step():
        pass
    completions = [future.result(timeout=0) for future in futures]
    for completion in completions:
        if completion.error_code is not None:
            raise BenchError(f"a row failed: {completion.error_code}: {completion.error_message}")
    return [completion.token_ids for completion in completions]


def _as_job_row(request: Request, seed: int) -> EngineRequest:
    return EngineRequest("bench", request.prompt_ids, SamplingParams(max_tokens=request.output_tokens), seed)


class _ForwardClock:
    """Counts the seconds within a model's forward passes, attention included."""

    def __init__(self, model: Any) -> None:
        self.seconds = 0.0
        forward = model.forward

        @wraps(forward)
        def timed(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return forward(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started

        model.forward = timed


def _numbers(engine: Engine, clock: _ForwardClock) -> dict[str, float]:
    """What the engine counted, the warm-up included, and the share of its steps outside of the model's forward."""
    stats = engine.stats()
    numbers = {name: value for name, value in asdict(stats).items() if isinstance(value, int | float)}
    return {**numbers, "outside_forward": round(1 - clock.seconds / stats.step_seconds, 4)}
