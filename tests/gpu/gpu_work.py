"""In-flight engines on the accelerator, what they are asked, and how far their answers agree."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

from jobs.spec import SamplingParams
from worker.engine.inflight import InflightEngine
from worker.engine.request import Completion, EngineLimits, Request
from worker.models import LoadedModel

Load = Callable[..., LoadedModel]
Record = Callable[[str, object], None]


def requests(count: int, longest: int = 300, **params: object) -> list[Request]:
    """Prompts of one block and of two."""
    rng = random.Random(1)
    return [
        Request(
            "job",
            [rng.randrange(3, 400) for _ in range(rng.randint(1, longest))],
            SamplingParams(max_tokens=rng.randint(8, 40), **params),  # type: ignore[arg-type]
            seed=i,
        )
        for i in range(count)
    ]


def engine_for(loaded: LoadedModel, max_rows: int, tokens: int = 2048, kv_tokens: int = 64 * 512) -> InflightEngine:
    """Over a copy of the model, whose original goes on to attend by itself."""
    limits = EngineLimits(max_rows=max_rows, max_batch_tokens=tokens, max_length=loaded.max_length, kv_tokens=kv_tokens)
    return InflightEngine(copy.deepcopy(loaded.model), loaded.tokenizer, limits)


def run(engine: InflightEngine, asked: Sequence[Request]) -> list[Completion]:
    futures = [engine.submit(one) for one in asked]
    while engine.step():
        pass
    completions = [future.result(timeout=0) for future in futures]
    assert all(completion.error_code is None for completion in completions)
    return completions


def same(left: Sequence[Completion], right: Sequence[Completion]) -> float:
    """The share of rows whose tokens are the same."""
    return sum(a.token_ids == b.token_ids for a, b in zip(left, right, strict=True)) / len(left)


def same_tokens(left: Sequence[Completion], right: Sequence[Completion]) -> float:
    """The share of tokens before the first that differs, of all rows together."""
    pairs = [(a.token_ids, b.token_ids) for a, b in zip(left, right, strict=True)]
    before = (next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a)) for a, b in pairs)
    return sum(before) / sum(len(a) for a, _ in pairs)
