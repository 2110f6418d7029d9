"""``promptmill-worker doctor``: what this machine would serve a model with."""

from __future__ import annotations

import time
from typing import Any

import torch

from jobs import __version__
from jobs.spec import SamplingParams
from worker.engine.padded import PaddedEngine
from worker.engine.request import EngineLimits, Request
from worker.models import load_model

_PROMPT = "Once upon a time"


def examine(name: str, source: str, device: str, dtype: str, trust_remote_code: bool) -> dict[str, Any]:
    """Load the model, generate one prompt, and report. Raises ModelError."""
    started = time.perf_counter()
    loaded = load_model(name, source, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
    load_s = time.perf_counter() - started
    engine = PaddedEngine(loaded.model, loaded.tokenizer, EngineLimits(max_rows=1, max_length=loaded.max_length))
    future = engine.submit(Request("doctor", loaded.tokenizer.encode(_PROMPT), SamplingParams(max_tokens=16), seed=0))
    started = time.perf_counter()
    while not future.done():
        engine.step()
    completion = future.result()
    engine.close()
    return {
        "promptmill": __version__,
        "torch": torch.__version__,
        "model": name,
        "revision": loaded.revision,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "attention": str(getattr(loaded.model.config, "_attn_implementation", "unknown")),
        "engine": "padded",
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
