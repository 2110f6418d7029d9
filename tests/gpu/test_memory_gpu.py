"""Memory of the accelerator that runs out, and the room that is left."""

from __future__ import annotations

import copy

import pytest
import torch
from gpu_work import Load, engine_for, run, same_tokens

from jobs.spec import SamplingParams
from worker.engine import serving
from worker.engine.memory import free_memory
from worker.engine.request import EngineLimits, Request
from worker.engine.runner import forward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_real_lack_of_memory_makes_steps_smaller_and_loses_no_row(load: Load, dtype: str) -> None:
    loaded = load("gpt2", dtype=dtype, max_length=4096)
    asked = [
        Request("job", [5 + (i * j) % 300 for j in range(4000)], SamplingParams(max_tokens=4), seed=i)
        for i in range(24)
    ]
    limits = {"max_rows": 24, "tokens": 24 * 4000, "kv_tokens": 26 * 4096}
    roomy = engine_for(loaded, **limits)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    want = run(roomy, asked)
    taken = torch.cuda.max_memory_allocated() - before
    del roomy
    free_memory()

    engine = engine_for(loaded, **limits)
    free_memory()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 0.5 * taken) / total)
    try:
        got = run(engine, asked)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

    assert [len(one.token_ids) for one in got] == [len(one.token_ids) for one in want]
    assert engine.scheduler.max_step_tokens < 24 * 4000
    assert same_tokens(got, want) > (0.5 if dtype == "bfloat16" else 0.9)


def test_the_room_for_keys_and_values_leaves_room_for_the_largest_step(load: Load) -> None:
    loaded = load("llama", dtype="bfloat16", max_length=4096)
    limits = EngineLimits(max_rows=32, max_batch_tokens=32 * 1024, max_length=4096)
    model = copy.deepcopy(loaded.model)
    backend = serving.backend_for(model, limits)

    step = serving._largest_step(model, limits, 32 * 1024)
    for chunk in step:
        assert backend.cache.reserve(chunk.row.key, chunk.count)
    with torch.inference_mode():
        logits = forward(model, backend, backend.prepare(step))

    assert logits.shape[0] == 32
    assert logits.isfinite().all()
