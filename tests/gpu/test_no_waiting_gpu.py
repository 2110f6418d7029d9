"""What a step does on the host never waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import pytest
import torch
from gpu_work import Load, engine_for
from torch import Tensor

from jobs.spec import SamplingParams
from worker.engine.block_attention import BlockAttention
from worker.engine.request import Request
from worker.engine.row import Row
from worker.engine.runner import forward
from worker.engine.sampler import Sampler
from worker.engine.scheduler import Chunk

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the device inside raises RuntimeError."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        # That the mode does not see everything, once for each process.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_choosing_tokens_of_any_kind_never_waits_for_the_device(load: Load) -> None:
    loaded = load("llama")
    settings: list[dict[str, float]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 7, "min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "top_p": 0.5, "repetition_penalty": 0.8, "logprobs": True},
    ]
    rows = [
        Row(Request("job", [5 + i], SamplingParams(**params), seed=i), loaded.tokenizer, frozenset(), 512)  # type: ignore[arg-type]
        for i, params in enumerate(settings)
    ]
    sampler = Sampler(torch.device("cuda"))
    logits = torch.randn(len(rows), 400, device="cuda").bfloat16()
    sampler.choose(logits, rows, [0] * len(rows)).on_host()
    for row in rows:
        sampler.forget(row)

    with no_waiting():
        chosen = [sampler.choose(logits, rows, [position] * len(rows)) for position in range(2)]

    for one in chosen:
        choice = one.on_host()
        assert all(0 <= token < 400 for token in choice.tokens)
        assert not any(choice.bad)


@torch.inference_mode()
def test_preparing_and_launching_a_step_in_blocks_never_waits_for_the_device(load_for_blocks: Load) -> None:
    engine = engine_for(load_for_blocks("llama"), max_rows=8)
    backend, runner = cast(BlockAttention, engine._backend), engine._runner
    rows = [
        Row(one, engine._tokenizer, frozenset(), 512)
        for one in (Request("job", list(range(5, 300 + i)), SamplingParams(), seed=i) for i in range(5))
    ]
    for row in rows:
        assert backend.cache.reserve(row.key, row.prompt_tokens)
    steps = [
        [Chunk(row, 0, 280, samples=False) for row in rows[:-1]] + [Chunk(rows[-1], 0, 280, samples=True)],
        [Chunk(row, 280, 1, samples=True) for row in rows],
        [Chunk(row, 281, 1, samples=True) for row in rows],
    ]
    graphs = runner._graphs
    assert graphs is not None

    def launch(step: list[Chunk[Row]]) -> Tensor:
        packed = backend.prepare(step)
        logits = graphs.run(packed)
        return forward(runner._model, backend, packed) if logits is None else logits

    for step in steps:  # libraries set themselves up, and the graph is captured
        launch(step)
    with no_waiting():
        launched = [launch(step) for step in steps]

    assert all(bool(logits.isfinite().all()) for logits in launched)
