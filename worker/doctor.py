"""``promptmill-worker doctor``: what this machine would serve a model with."""

from __future__ import annotations

import time
from typing import Any

import torch

from jobs import __version__
from jobs.spec import SamplingParams
from worker.app import WorkerOptions, engine_for, model_for
from worker.engine.build import describe
from worker.engine.request import Request

_PROMPT = "Once upon a time"


def examine(options: WorkerOptions) -> dict[str, Any]:
    """Load the model as a worker with these options would, generate one prompt, and report. Raises ModelError."""
    started = time.perf_counter()
    loaded = model_for(options)
    load_s = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    engine, engine_name = engine_for(options, loaded)
    future = engine.submit(Request("doctor", loaded.tokenizer.encode(_PROMPT), SamplingParams(max_tokens=16), seed=0))
    started = time.perf_counter()
    while not future.done():
        engine.step()
    completion = future.result()
    described = describe(engine, loaded.model)
    engine.close()
    return {
        "promptmill": __version__,
        "torch": torch.__version__,
        "model": options.model,
        "revision": loaded.revision,
        "parameters": parameters,
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "engine": engine_name,
        **described,
        "context": loaded.max_length,
        "memory_free_mb": _free_memory_mb(loaded.device),
        "load_s": round(load_s, 2),
        "generate_s": round(time.perf_counter() - started, 3),
        "tokens": len(completion.token_ids),
        "text": completion.text,
    }


def _free_memory_mb(device: Any) -> int | None:
    """Free memory of the device in MB; None where it cannot be read."""
    if str(device).startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0] / 1e6)
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            fields = dict(line.split(":", 1) for line in meminfo)
        return int(fields["MemAvailable"].split()[0]) // 1000
    except (OSError, KeyError, ValueError):
        return None
