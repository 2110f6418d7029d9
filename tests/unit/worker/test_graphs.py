"""Steps of rows that generate, padded to a bucket: what a replay reads is what the step wrote."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.unit.worker.engine_work import assert_chosen_alone, random_prompt, random_request, run
from worker.engine import serving
from worker.engine.attention import NAME
from worker.engine.block_attention import BlockAttention
from worker.engine.graphs import MOST_ROWS, CaptureError, Graphs, bucket, graphs_for
from worker.engine.inflight import InflightEngine
from worker.engine.request import EngineLimits
from worker.engine.row import Row
from worker.engine.runner import Runner, forward
from worker.engine.scheduler import Chunk
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]


class Eagerly:
    """Records nothing: computes anew from where the input lies, as a replay does."""

    def __init__(self) -> None:
        self.captured = self.replayed = self.forgotten = 0

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.captured += 1

        def replay() -> Tensor:
            self.replayed += 1
            return compute()

        return replay

    def forget(self) -> None:
        self.forgotten += 1


class Refuses(Eagerly):
    """Cannot record: ``refusal`` is what is raised, for the first ``times`` times."""

    def __init__(self, refusal: Exception, times: int = 1_000) -> None:
        super().__init__()
        self.refusal, self.times = refusal, times

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        recorded = super().__call__(compute)
        if self.captured > self.times:
            return recorded
        compute()
        raise self.refusal


class Stretch:
    """A row of given tokens."""

    def __init__(self, key: int, tokens: list[int]) -> None:
        self.key = key
        self.tokens = tokens

    def ids(self, start: int, count: int) -> list[int]:
        return self.tokens[start : start + count]


def on_blocks(loaded: LoadedModel) -> tuple[Any, BlockAttention]:
    model = copy.deepcopy(loaded.model)
    model.set_attn_implementation(NAME)
    shape = serving._shape_of(model)
    return model, BlockAttention(shape, model.dtype, model.device, 4000, loaded.max_length, block_size=4)


def prepared(backend: BlockAttention, rows: list[Stretch], start: int, count: int) -> list[Chunk[Row]]:
    for row in rows:
        assert backend.cache.reserve(row.key, start + count)
    return backend.prepare([Chunk(cast(Row, row), start, count, samples=True) for row in rows])


def stretches(count: int) -> list[Stretch]:
    return [Stretch(key, random_prompt(random.Random(key), 20)) for key in range(count)]


def test_a_bucket_has_room_for_its_rows_and_little_more() -> None:
    sizes = [cast(int, bucket(rows)) for rows in range(1, MOST_ROWS + 1)]
    assert all(rows <= size <= 2 * rows for rows, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * rows for rows, size in enumerate(sizes, 1) if rows > 16)
    assert sorted({*sizes}) == [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert bucket(MOST_ROWS + 1) is None


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.inference_mode()
def test_a_replay_gives_the_logits_of_the_step_without_padding(tiny: Tiny, kind: str) -> None:
    model, backend = on_blocks(tiny(kind))
    capture = Eagerly()
    graphs = Graphs(model, backend, capture)
    rows = stretches(5)
    packed = prepared(backend, rows, 0, 9)
    assert graphs.run(packed) is None
    forward(model, backend, packed)

    for at, count in ((9, 5), (10, 3), (11, 3), (12, 1)):
        packed = prepared(backend, rows[:count], at, 1)
        want = forward(model, backend, packed).clone()
        got = graphs.run(packed)
        assert got is not None
        assert torch.allclose(got, want, atol=1e-4)
        assert got.std(-1).min() > 0.1
    assert capture.replayed == 4
    assert capture.captured == 3


@torch.inference_mode()
def test_padding_changes_nothing_that_a_row_has_written(tiny: Tiny) -> None:
    model, backend = on_blocks(tiny("llama"))
    rows = stretches(3)
    for pool in backend.pools:
        pool.zero_()
    forward(model, backend, prepared(backend, rows, 0, 7))
    before = [pool.clone() for pool in backend.pools]
    packed = prepared(backend, rows, 7, 1)
    assert Graphs(model, backend, Eagerly()).run(packed) is not None

    written = {backend.cache.table(row.key)[1] * 4 + 3 for row in rows}
    for old, new in zip(before, backend.pools, strict=True):
        changed = (old != new).flatten(3).any(-1).any(0).flatten().nonzero().flatten().tolist()
        assert written <= {*changed} <= written | {0}


@torch.inference_mode()
def test_steps_with_a_prompt_or_with_a_row_that_does_not_sample_are_not_for_a_graph(tiny: Tiny) -> None:
    model, backend = on_blocks(tiny("gpt2"))
    graphs = Graphs(model, backend, Eagerly())
    rows = stretches(2)
    assert graphs.run(prepared(backend, rows, 0, 2)) is None
    backend.prepare(unsampled := [Chunk(cast(Row, row), 0, 1, samples=False) for row in rows])
    assert graphs.run(unsampled) is None


@torch.inference_mode()
def test_where_capturing_fails_steps_run_without_graphs_and_the_log_says_so_once(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    model, backend = on_blocks(tiny("gpt2"))
    refusal = CaptureError("CUDA error: operation not permitted when stream is capturing")
    graphs = Graphs(model, backend, Refuses(refusal))
    rows = stretches(3)
    forward(model, backend, prepared(backend, rows, 0, 4))
    for at in (4, 5):
        packed = prepared(backend, rows, at, 1)
        assert graphs.run(packed) is None
        # And the step can be run all the same.
        assert forward(model, backend, packed).shape[0] == 3
    assert sum("no CUDA graphs" in line for line in caplog.messages) == 1


@torch.inference_mode()
def test_a_device_that_is_lost_while_capturing_ends_the_engine(tiny: Tiny) -> None:
    model, backend = on_blocks(tiny("gpt2"))
    graphs = Graphs(model, backend, Refuses(RuntimeError("CUDA error: an illegal memory access was encountered")))
    rows = stretches(3)
    forward(model, backend, prepared(backend, rows, 0, 4))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        graphs.run(prepared(backend, rows, 4, 1))


@torch.inference_mode()
def test_a_graph_that_does_not_fit_is_left_out_and_tried_again_when_there_is_memory(tiny: Tiny) -> None:
    model, backend = on_blocks(tiny("gpt2"))
    capture = Refuses(torch.OutOfMemoryError("CUDA out of memory"), times=1)
    graphs = Graphs(model, backend, capture)
    rows = stretches(5)
    forward(model, backend, prepared(backend, rows, 0, 4))
    assert graphs.run(prepared(backend, rows, 4, 1)) is None
    assert graphs.run(prepared(backend, rows[:2], 5, 1)) is not None
    assert graphs.run(prepared(backend, rows, 5, 1)) is None
    assert capture.captured == 2

    backend.reset()
    forward(model, backend, prepared(backend, rows, 0, 4))
    assert graphs.run(prepared(backend, rows, 4, 1)) is not None
    assert capture.forgotten == 1


@torch.inference_mode()
def test_nothing_keeps_the_memory_of_keys_and_values_after_it_was_given_back(tiny: Tiny) -> None:
    model, backend = on_blocks(tiny("gpt2"))
    runner = Runner(model, backend)
    runner._graphs = Graphs(model, backend, Eagerly())
    rows = stretches(2)
    forward(model, backend, prepared(backend, rows, 0, 4))
    assert runner._graphs.run(prepared(backend, rows, 4, 1)) is not None
    old = [weakref.ref(pool) for pool in backend.pools]

    runner.reset()

    assert [one() for one in old] == [None, None]


@torch.inference_mode()
def test_graphs_of_memory_that_was_given_back_are_not_replayed(tiny: Tiny) -> None:
    model, backend = on_blocks(tiny("gpt2"))
    capture = Eagerly()
    graphs = Graphs(model, backend, capture)
    for captured in (1, 2):
        rows = stretches(2)
        forward(model, backend, prepared(backend, rows, 0, 4))
        for at in (4, 5):
            assert graphs.run(prepared(backend, rows, at, 1)) is not None
        assert capture.captured == captured
        backend.reset()


def test_an_engine_whose_decode_steps_are_replayed_gives_the_tokens_of_each_row_alone(tiny: Tiny) -> None:
    loaded = tiny("llama")
    model, backend = on_blocks(loaded)
    limits = EngineLimits(max_rows=7, max_batch_tokens=200, max_length=loaded.max_length)
    engine = InflightEngine(model, loaded.tokenizer, limits, backend)
    capture = Eagerly()
    engine._runner._graphs = Graphs(model, backend, capture)
    asked = [random_request(random.Random(i), longest_output=16) for i in range(14)]

    for one, completion in zip(asked, run(engine, asked), strict=True):
        assert_chosen_alone(loaded.model, one, completion)
    assert capture.replayed > 10


def test_there_are_no_graphs_without_a_device_that_has_them(tiny: Tiny) -> None:
    model, backend = on_blocks(tiny("gpt2"))
    assert graphs_for(model, backend) is None
