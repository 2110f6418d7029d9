"""The engine alone, in a process that does nothing else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from bench_errors import BenchError

from jobs.spec import SamplingParams, default_seed
from pipeline_bench.records import ALIAS, Run, Setup
from worker.engine.build import build_engine
from worker.engine.request import Engine, EngineLimits, Request
from worker.models import load_model


def generate_bare(setup: Setup, warm_up: str, prompts: str) -> Run:
    """One run of the engine in this process, and nothing beside it. Raises BenchError."""
    torch.set_num_threads(setup.threads)
    loaded = load_model(ALIAS, setup.model)
    limits = EngineLimits(setup.max_rows, setup.max_batch_tokens, loaded.max_length)
    engine, name = build_engine(setup.engine, loaded.model, loaded.tokenizer, limits)
    generate(engine, requests_of(warm_up, loaded.tokenizer.encode))
    requests = requests_of(prompts, loaded.tokenizer.encode)
    before = engine.stats()
    started, cpu = time.perf_counter(), time.process_time()
    tokens = generate(engine, requests)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    after = engine.stats()
    return Run(
        engine=name,
        seconds=seconds,
        prompt_tokens=sum(len(request.prompt_ids) for request in requests),
        completion_tokens=tokens,
        steps=after.steps - before.steps,
        step_seconds=after.step_seconds - before.step_seconds,
        cpu_seconds=cpu_seconds,
    )


def requests_of(path: str, encode: Callable[[str], list[int]]) -> list[Request]:
    """The rows of a file as a worker would hand them to its engine."""
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [
        Request(ALIAS, encode(row["prompt"]), SamplingParams(max_tokens=row["max_tokens"]), default_seed(ALIAS, i, 0))
        for i, row in enumerate(rows)
    ]


def generate(engine: Engine, requests: Sequence[Request]) -> int:
    """Tokens generated. Raises BenchError where a row got another number than it asked for."""
    futures = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    tokens = 0
    for future, request in zip(futures, requests, strict=True):
        completion = future.result(timeout=0)
        if completion.error_code or len(completion.token_ids) != request.params.max_tokens:
            raise BenchError(f"a row got {len(completion.token_ids)} tokens: {completion.error_message}")
        tokens += len(completion.token_ids)
    return tokens
