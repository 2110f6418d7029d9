"""CUDA graphs of decode steps: the tokens of the same steps without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch
from gpu_work import Load, Record, engine_for, requests, run, same_tokens

from worker.engine.block_attention import BlockAttention
from worker.engine.failures import Failure
from worker.engine.graphs import Graphs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class Launched:
    """Captures nothing: the same steps, launched."""

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return compute

    def forget(self) -> None:
        pass


def test_graphs_are_captured_anew_after_a_step_failed(load_for_blocks: Load) -> None:
    engine = engine_for(load_for_blocks("llama"), max_rows=12)
    futures = [engine.submit(one) for one in requests(6)]
    for _ in range(5):
        engine.step()
    before = torch.cuda.memory_allocated()
    engine._recover(engine.scheduler.next_step(), Failure.ROW, "as a test says")
    while engine.step():
        pass

    assert [future.result(timeout=0).error_code for future in futures] == [None] * 6
    graphs = engine._runner._graphs
    assert graphs is not None
    assert graphs._graphs
    assert torch.cuda.memory_allocated() < 1.5 * before, "the old keys and values are gone"


def test_graphs_give_the_tokens_of_the_same_steps_launched_one_by_one(load_for_blocks: Load) -> None:
    loaded = load_for_blocks("llama")
    asked = requests(40, temperature=0.7)
    captured, launched = engine_for(loaded, max_rows=12), engine_for(loaded, max_rows=12)
    graphs = captured._runner._graphs
    assert graphs is not None
    backend = cast(BlockAttention, launched._backend)
    launched._runner._graphs = Graphs(launched._runner._model, backend, Launched())

    with_graphs, without = run(captured, asked), run(launched, asked)

    assert graphs._capture is not None, "capturing failed"
    assert len(graphs._graphs) >= 3
    assert [one.token_ids for one in with_graphs] == [one.token_ids for one in without]


def test_graphs_mostly_agree_with_steps_that_are_not_padded(load_for_blocks: Load, record_property: Record) -> None:
    loaded = load_for_blocks("gpt2")
    asked = requests(40)
    captured, eager = engine_for(loaded, max_rows=12), engine_for(loaded, max_rows=12)
    eager._runner._graphs = None

    with_graphs, without = run(captured, asked), run(eager, asked)

    record_property("graphs_agreement", same_tokens(with_graphs, without))
    assert same_tokens(with_graphs, without) > 0.5
