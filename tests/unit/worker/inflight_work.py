"""In-flight engines that are watched, and brought to their end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from engine_work import inflight_for, random_prompt
from torch import Tensor

from worker.engine.inflight import InflightEngine
from worker.engine.request import Completion
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]


#: A token that the tests make the model fail on.
MARK = 333


def prompts(count: int) -> list[list[int]]:
    rng = random.Random(3)
    return [random_prompt(rng, rng.randint(3, 12), vocabulary=MARK) for _ in range(count)]


def watched(loaded: LoadedModel, check: Callable[[Tensor], None], **limits: int) -> InflightEngine:
    """An engine that calls ``check`` with the tokens [T] of every step, from inside of the model's forward pass."""
    engine = inflight_for(loaded, **limits)
    embedding = engine._runner._model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, args: check(args[0][0]))
    return engine


def tokens_of(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.token_ids for completion in completions]


def steps(engine: InflightEngine, count: int) -> None:
    for _ in range(count):
        assert engine.step()


def finish(engine: InflightEngine, futures: Sequence[Future[Completion]]) -> list[Completion]:
    while engine.step():
        pass
    assert (engine.rows_in_hand, engine.scheduler.running, len(engine.scheduler)) == (0, 0, 0)
    assert engine.backend.cache.used_ratio == 0
    return [future.result(timeout=0) for future in futures]
