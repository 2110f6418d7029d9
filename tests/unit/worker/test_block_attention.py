"""Attention over blocks: rows get the tokens that the model gives them alone, wherever their blocks lie."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.unit.worker.engine_work import (
    assert_chosen_alone,
    assert_varied,
    random_prompt,
    random_request,
    request,
    run,
)
from worker.engine import block_kernels, serving
from worker.engine.attention import NAME, KVShape, Layer, visible
from worker.engine.block_attention import BLOCK_SIZE, BlockAttention, Plan, disagreement
from worker.engine.block_cache import SCRATCH_BLOCK, BlockCache
from worker.engine.block_kernels import Kernel, Layout, gathered, varlen, why_not_varlen
from worker.engine.inflight import InflightEngine
from worker.engine.request import EngineLimits
from worker.engine.row import Row
from worker.engine.scheduler import Chunk
from worker.engine.slot_attention import SlotAttention
from worker.models import LoadedModel

Tiny = Callable[..., LoadedModel]

CPU = torch.device("cpu")
SHAPE = KVShape(layers=2, heads=2, key_dim=16, value_dim=16)

#: Each with a trait of attention of its own: plain, heads that share keys, a window, a window and softcap.
MODELS = {"gpt2": {}, "llama": {}, "mistral": {"sliding_window": 8}, "gemma2": {"sliding_window": 8}}


def engine_on_blocks(loaded: LoadedModel, block_size: int, budget: int = 4000, **limits: int) -> InflightEngine:
    """Over a copy of the model: the original goes on to attend by itself."""
    model = copy.deepcopy(loaded.model)
    model.set_attn_implementation(NAME)
    backend = BlockAttention(
        serving._shape_of(model), model.dtype, CPU, budget, loaded.max_length, block_size=block_size
    )
    return InflightEngine(model, loaded.tokenizer, EngineLimits(max_length=loaded.max_length, **limits), backend)


@pytest.mark.parametrize("block_size", [4, 16])
@pytest.mark.parametrize("kind", MODELS)
def test_rows_in_random_mixes_get_the_tokens_that_they_get_alone(tiny: Tiny, kind: str, block_size: int) -> None:
    loaded = tiny(kind, **MODELS[kind])
    rng = random.Random(block_size)
    completions = []
    for _ in range(3):
        engine = engine_on_blocks(loaded, block_size, max_rows=rng.randint(2, 9), max_batch_tokens=rng.randint(8, 60))
        asked = [random_request(rng) for _ in range(10)]
        for one, completion in zip(asked, run(engine, asked), strict=True):
            assert_chosen_alone(loaded.model, one, completion)
            completions.append(completion)
        assert engine.stats().kv_used_ratio == 0
    assert_varied(completions)


@pytest.mark.parametrize("block_size", [4, 16])
def test_samples_of_one_prompt_and_rows_of_one_template_share_blocks_and_differ(tiny: Tiny, block_size: int) -> None:
    loaded = tiny("llama")
    rng = random.Random(1)
    template, prompt = random_prompt(rng, 37), random_prompt(rng, 21)
    samples = [request(prompt, seed=7, sample=i, temperature=1.0, max_tokens=6) for i in range(4)]
    filled = [request([*template, *random_prompt(rng, 1 + i)], max_tokens=6) for i in range(5)]
    engine = engine_on_blocks(loaded, block_size, max_rows=9)

    asked = [*samples, *filled]
    completions = run(engine, asked)

    for one, completion in zip(asked, completions, strict=True):
        assert_chosen_alone(loaded.model, one, completion)
    assert engine.stats().shared_tokens >= 3 * 20 + 4 * 37
    assert len({tuple(completion.token_ids) for completion in completions}) == len(asked)


def test_rows_that_had_to_give_up_their_blocks_go_on_where_they_were(tiny: Tiny) -> None:
    loaded = tiny("gpt2")
    rng = random.Random(2)
    asked = [request(random_prompt(rng, rng.randint(1, 12)), max_tokens=20) for _ in range(12)]
    engine = engine_on_blocks(loaded, 4, budget=80, max_rows=8)

    completions = run(engine, asked)

    assert engine.stats().preempted_rows > 0
    for one, completion in zip(asked, completions, strict=True):
        assert_chosen_alone(loaded.model, one, completion)


def test_after_a_step_that_fails_the_blocks_begin_anew(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("gpt2")
    engine = engine_on_blocks(loaded, 4, max_rows=4)
    asked = [request(random_prompt(random.Random(i), 9), max_tokens=8) for i in range(4)]
    futures = [engine.submit(one) for one in asked]
    for _ in range(3):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(BlockAttention, "attend", out_of_memory)
        engine.step()
    while engine.step():
        pass

    for one, future in zip(asked, futures, strict=True):
        assert_chosen_alone(loaded.model, one, future.result(timeout=0))
    assert engine.scheduler.max_rows == 2


def out_of_memory(*_: object) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_no_token_is_written_where_another_row_can_read_it() -> None:
    cache = BlockCache(9, 4)
    for key, positions in ((0, 6), (1, 9), (2, 1)):
        assert cache.reserve(key, positions)
    plan = Plan.of(chunks((0, 5, 1), (1, 2, 7), (2, 0, 1)), cache)

    where = {int(place): None for place in plan.places}
    assert len(where) == len(plan.places) == 9
    assert plan.places.tolist()[0] == cache.table(0)[1] * 4 + 1
    assert plan.places.tolist()[1:8] == [cache.table(1)[at // 4] * 4 + at % 4 for at in range(2, 9)]
    assert plan.lengths.tolist() == [6, 9, 1]
    assert plan.tables.tolist()[2] == [cache.table(2)[0], SCRATCH_BLOCK, SCRATCH_BLOCK]


def test_rows_that_pad_a_step_write_to_the_scratch_block_alone() -> None:
    cache = BlockCache(9, 4)
    for key in range(3):
        assert cache.reserve(key, 6)
    plan = Plan.of(chunks((0, 5, 1), (1, 4, 1), (2, 3, 1)), cache)

    padded = plan.padded(8, 5)
    layout = padded.on(CPU)

    assert layout.places.tolist() == [*plan.places.tolist(), 0, 0, 0, 0, 0]
    assert layout.lengths.tolist() == [6, 5, 4, 1, 1, 1, 1, 1]
    assert layout.query_starts.tolist() == [*range(9)]
    assert layout.key_starts.tolist() == [0, 6, 11, 15, 16, 17, 18, 19, 20]
    assert layout.tables.shape == (8, 5)
    assert bool((layout.tables[3:] == SCRATCH_BLOCK).all())
    assert layout.tables[:3, :2].equal(torch.from_numpy(plan.tables).int())


def chunks(*parts: tuple[int, int, int]) -> list[Any]:
    """From (key, start, count) of each row."""
    return [Chunk(cast(Row, Keyed(key)), start, count, samples=True) for key, start, count in parts]


class Keyed:
    def __init__(self, key: int) -> None:
        self.key = key


def blind_to_windows(layer: Layer, query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    return gathered(replace(layer, window=None), query, keys, values, layout)


def first_block_only(layer: Layer, query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    tables = layout.tables[:, :1].expand_as(layout.tables)
    return gathered(layer, query, keys, values, replace(layout, tables=tables))


def reads_all_of_a_block(layer: Layer, query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Gives what has not been written no weight, and still multiplies by it."""
    unwritten = torch.cat([values[row, -1] for row in layout.tables[:, -1]]).sum()
    return gathered(layer, query, keys, values, layout) + 0 * unwritten


@pytest.mark.parametrize("kernel", [blind_to_windows, first_block_only, reads_all_of_a_block])
def test_a_kernel_that_is_wrong_is_found_out(kernel: Kernel) -> None:
    assert disagreement(gathered, SHAPE, torch.float32, CPU, 16) == 0
    assert not disagreement(kernel, SHAPE, torch.float32, CPU, 16) <= serving.KERNEL_TOLERANCE


def flash_attention_as_documented(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
    num_splits: int,
) -> Tensor:
    """``torch.nn.attention.varlen.varlen_attn`` with a block table, by its docstring and by what FA-2 checks."""
    rows, heads = len(seqused_k), key.shape[2]
    assert key.shape[1] % 256 == 0
    assert cu_seq_k is not None
    assert cu_seq_q.shape == cu_seq_k.shape == (rows + 1,)
    assert all(one.dtype == torch.int32 for one in (cu_seq_q, cu_seq_k, seqused_k, block_table))
    assert block_table.stride(-1) == query.stride(-1) == key.stride(-1) == num_splits == 1
    assert enable_gqa == (query.shape[1] != heads)
    assert int(cu_seq_q.diff().max()) <= max_q
    assert int(seqused_k.max()) <= max_k
    assert torch.equal(cu_seq_k.diff(), seqused_k)
    left, right = window_size
    out = torch.empty_like(query)
    for row in range(rows):
        first, last, length = int(cu_seq_q[row]), int(cu_seq_q[row + 1]), int(seqused_k[row])
        blocks = [pool[block_table[row].long()].flatten(0, 1)[:length] for pool in (key, value)]
        own = [one.repeat_interleave(query.shape[1] // heads, 1).float() for one in blocks]
        # The last query is at the last key.
        at = torch.arange(last - first)[:, None] + length - (last - first)
        keys = torch.arange(length)[None]
        seen = ((keys >= at - left) | (left < 0)) & ((keys <= at + right) | (right < 0))
        scores = torch.einsum("thd,shd->hts", query[first:last].float(), own[0]) * scale
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[first:last] = torch.einsum("hts,shd->thd", weights, own[1]).to(query.dtype)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_attention_is_asked_for_what_its_documentation_says(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(block_kernels, "varlen_attn", flash_attention_as_documented)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert disagreement(varlen, SHAPE, dtype, CPU) < tolerance


def test_flash_attention_is_not_asked_for_softcap() -> None:
    cache = BlockCache(2, 4)
    assert cache.reserve(0, 1)
    query, pool = torch.zeros(1, 2, 16), torch.zeros(2, 4, 2, 16)
    with pytest.raises(ValueError, match="softcap"):
        varlen(Layer(0, 1.0, softcap=30.0), query, pool, pool, Plan.of(chunks((0, 0, 1)), cache).on(CPU))


def test_a_device_without_the_kernel_says_so_and_gets_slots(tiny: Tiny) -> None:
    assert "no CUDA device" in (why_not_varlen(SHAPE, torch.float32, CPU) or "")
    assert isinstance(backend_of(tiny("llama")), SlotAttention)


def backend_of(loaded: LoadedModel, **limits: int) -> Any:
    limits = {"max_rows": 4, "max_batch_tokens": 64, "kv_tokens": 4 * BLOCK_SIZE} | limits
    return serving.backend_for(copy.deepcopy(loaded.model), EngineLimits(max_length=loaded.max_length, **limits))


@pytest.fixture
def with_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kernel], None]:
    """As on a device whose kernel for blocks is this one."""

    def use(kernel: Kernel) -> None:
        monkeypatch.setattr(serving, "why_not_varlen", lambda *_: None)
        monkeypatch.setattr(serving, "varlen", kernel)

    return use


def test_a_device_with_a_kernel_that_works_gets_blocks(tiny: Tiny, with_kernel: Callable[[Kernel], None]) -> None:
    with_kernel(gathered)
    assert isinstance(backend_of(tiny("llama")), BlockAttention)
    assert isinstance(backend_of(tiny("llama"), kv_tokens=BLOCK_SIZE - 1), SlotAttention)


def fails(*_: object) -> Tensor:
    raise RuntimeError("no kernel image is available")


def fails_with_softcap(layer: Layer, query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    if layer.softcap is not None:
        raise ValueError("no softcap")
    return gathered(layer, query, keys, values, layout)


def shifts_heads(layer: Layer, query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Right for what the kernel's own check runs, wrong for four heads on two."""
    out = gathered(layer, query, keys, values, layout)
    return out.roll(1, 1) if query.shape[0] < BLOCK_SIZE and layer.index == 1 else out


@pytest.mark.parametrize(
    ("kernel", "kind", "reason"),
    [
        (fails, "llama", "no kernel image"),
        (blind_to_windows, "llama", "off by"),
        (fails_with_softcap, "gemma2", "no softcap"),
        (shifts_heads, "llama", "moves the logits"),
    ],
)
def test_a_kernel_that_fails_or_errs_leaves_the_model_to_slots_and_the_log_says_why(
    tiny: Tiny,
    with_kernel: Callable[[Kernel], None],
    caplog: pytest.LogCaptureFixture,
    kernel: Kernel,
    kind: str,
    reason: str,
) -> None:
    with_kernel(kernel)
    with caplog.at_level("INFO", "worker.engine.serving"):
        assert isinstance(backend_of(tiny(kind)), SlotAttention)
    assert reason in next(line for line in caplog.messages if "not in blocks" in line)


def test_the_largest_step_is_as_large_as_the_limits_say(tiny: Tiny) -> None:
    model = tiny("gpt2").model
    step = serving._largest_step(model, EngineLimits(max_rows=8, max_length=512), 1000)
    assert len(step) == 8
    assert sum(chunk.count for chunk in step) == 1000
    assert all(len(chunk.row.ids(0, chunk.count)) == chunk.count <= 512 and chunk.samples for chunk in step)


def test_gathered_rows_see_what_a_mask_over_the_whole_row_lets_them_see() -> None:
    torch.manual_seed(0)
    backend = BlockAttention(SHAPE, torch.float32, CPU, 64, 64, block_size=4)
    assert backend.cache.reserve(5, 11)
    query, key, value = torch.randn(4, 11, 16), torch.randn(2, 11, 16), torch.randn(2, 11, 16)
    pieces = []
    for start, stop in ((0, 7), (7, 8), (8, 11)):
        backend.prepare(chunks((5, start, stop - start)))
        pieces.append(
            backend.attend(Layer(1, 0.3, window=5), query[:, start:stop], key[:, start:stop], value[:, start:stop])
        )

    at = torch.arange(11)
    scores = torch.einsum("htd,hsd->hts", query, key.repeat_interleave(2, 0)) * 0.3
    weights = scores.masked_fill(~visible(at, at, 5), -torch.inf).softmax(-1)
    want = torch.einsum("hts,hsd->thd", weights, value.repeat_interleave(2, 0))
    assert torch.allclose(torch.cat(pieces), want, atol=1e-6)


def test_a_pool_that_shrinks_keeps_what_rows_have_written() -> None:
    backend = BlockAttention(SHAPE, torch.float32, CPU, 40, 40, block_size=4)
    assert backend.cache.reserve(0, 6)
    key, value = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    backend.prepare(chunks((0, 0, 6)))
    backend.attend(Layer(1, 1.0), torch.randn(4, 6, 16), key, value)
    blocks = [*backend.cache.table(0)]

    backend.cache.shrink(16)
    backend.prepare(chunks((0, 5, 1)))

    assert backend.pools.keys.shape[1] == backend.pools.values.shape[1] == 5
    for pool, written in zip(backend.pools, (key, value), strict=True):
        assert torch.equal(pool[1, blocks].flatten(0, 1)[:6].transpose(0, 1), written)
