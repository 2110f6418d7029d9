"""In-flight batching on an accelerator: the promises of the CPU, and the blocks and graphs that only a device has."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from jobs.spec import SamplingParams
from tests.models import tiny_model
from worker.engine import serving
from worker.engine.attention import NAME, KVShape
from worker.engine.block_attention import BLOCK_SIZE, BlockAttention, disagreement
from worker.engine.block_kernels import varlen, why_not_varlen
from worker.engine.failures import Failure
from worker.engine.graphs import Graphs
from worker.engine.inflight import InflightEngine
from worker.engine.memory import free_memory
from worker.engine.request import Completion, EngineLimits, Request
from worker.engine.row import Row
from worker.engine.runner import forward
from worker.engine.sampler import Sampler
from worker.engine.scheduler import Chunk
from worker.engine.slot_attention import SlotAttention
from worker.models import LoadedModel, load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

Load = Callable[..., LoadedModel]
Record = Callable[[str, object], None]

#: Below this distance of the best two logits either token is right, in float32.
NEAR_TIE = 1e-3


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(kind: str, dtype: str = "float32", **config: object) -> LoadedModel:
        folder = tiny_model(kind, tmp_path / kind, **config)  # type: ignore[arg-type]
        return load_model(kind, str(folder), device="cuda", dtype=dtype)

    return load


@pytest.fixture
def load_for_blocks(load: Load) -> Load:
    """In bfloat16; the test is skipped where the device or its torch has no kernel for blocks."""

    def load_it(kind: str, **config: object) -> LoadedModel:
        loaded = load(kind, dtype="bfloat16", **config)
        model = copy.deepcopy(loaded.model)
        model.set_attn_implementation(NAME)
        if why_not := why_not_varlen(serving._shape_of(model), model.dtype, model.device):
            pytest.skip(why_not)
        return loaded

    return load_it


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


def on_slots(loaded: LoadedModel, max_rows: int, monkeypatch: pytest.MonkeyPatch) -> InflightEngine:
    with monkeypatch.context() as patch:
        patch.setattr(serving, "why_not_varlen", lambda *_: "the test says so")
        return engine_for(loaded, max_rows)


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


@torch.inference_mode()
def margins(model: Any, asked: Request, completion: Completion) -> Tensor:
    """By how much the model alone prefers another token to each that was chosen greedily; 0 where it does not."""
    ids = torch.tensor([[*asked.prompt_ids, *completion.token_ids]], device="cuda")
    logits = model(ids, use_cache=False).logits[0, len(asked.prompt_ids) - 1 : -1].float()
    chosen = torch.tensor(completion.token_ids, device="cuda")
    behind: Tensor = logits.amax(-1) - logits.gather(-1, chosen[:, None]).squeeze(-1)
    return behind


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


@pytest.mark.parametrize(
    ("kind", "config"),
    [("gpt2", {}), ("llama", {}), ("qwen2", {}), ("mistral", {"sliding_window": 40}), ("gemma2", {}), ("opt", {})],
)
def test_float32_rows_lie_in_slots_and_get_the_tokens_that_they_get_alone(
    load: Load, kind: str, config: dict[str, int]
) -> None:
    loaded = load(kind, **config)
    asked = requests(24)
    engine = engine_for(loaded, max_rows=16)
    assert isinstance(engine._backend, SlotAttention)

    completions = run(engine, asked)

    for one, completion in zip(asked, completions, strict=True):
        assert margins(loaded.model, one, completion).max() < NEAR_TIE
    assert len({completion.text for completion in completions}) > 20


@pytest.mark.parametrize("head", [16, 64, 128, 256])
def test_the_kernel_for_blocks_gives_what_plain_matrices_give(load_for_blocks: Load, head: int) -> None:
    model = load_for_blocks("llama").model
    shape = KVShape(layers=1, heads=2, key_dim=head, value_dim=head)
    assert disagreement(varlen, shape, model.dtype, model.device) < serving.KERNEL_TOLERANCE


@pytest.mark.parametrize(
    ("kind", "config"), [("gpt2", {}), ("llama", {}), ("qwen2", {}), ("mistral", {"sliding_window": 40})]
)
def test_bfloat16_rows_in_blocks_mostly_agree_with_rows_in_slots(
    load_for_blocks: Load,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Record,
    kind: str,
    config: dict[str, int],
) -> None:
    loaded = load_for_blocks(kind, **config)
    asked = requests(32)
    blocks, slots = engine_for(loaded, max_rows=16), on_slots(loaded, 16, monkeypatch)
    assert isinstance(blocks._backend, BlockAttention)
    assert isinstance(slots._backend, SlotAttention)

    in_blocks, in_slots = run(blocks, asked), run(slots, asked)

    agreement = same_tokens(in_blocks, in_slots)
    record_property("blocks_slots_agreement", agreement)
    record_property("blocks_slots_same_rows", same(in_blocks, in_slots))
    # Where rounding decides, rows go separate ways; rows that read each other's blocks would do so at once.
    assert agreement > 0.5
    assert len({completion.text for completion in in_blocks}) > 25


def test_bfloat16_rows_get_the_same_tokens_in_any_company_mostly(
    load_for_blocks: Load, record_property: Record
) -> None:
    loaded = load_for_blocks("llama")
    asked = requests(32)

    alone, together = run(engine_for(loaded, max_rows=1), asked), run(engine_for(loaded, max_rows=32), asked)

    record_property("bfloat16_same_rows", same(alone, together))
    assert same_tokens(alone, together) > 0.5


def test_a_model_with_softcap_goes_to_slots(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "worker.engine.serving"):
        engine = engine_for(load("gemma2", dtype="bfloat16"), max_rows=8)
    assert isinstance(engine._backend, SlotAttention)
    assert any("not in blocks" in line for line in caplog.messages)
    assert len(run(engine, requests(8))) == 8


def test_forks_share_blocks_and_preempted_rows_go_on(load_for_blocks: Load, record_property: Record) -> None:
    loaded = load_for_blocks("llama")
    rng = random.Random(3)
    template = [rng.randrange(3, 400) for _ in range(BLOCK_SIZE + 30)]
    asked = [
        Request("job", [*template, 5 + i, *one.prompt_ids[:20]], one.params, seed=i)
        for i, one in enumerate(requests(24))
    ]
    apart, tight = engine_for(loaded, max_rows=1), engine_for(loaded, max_rows=12, kv_tokens=6 * BLOCK_SIZE)

    want, got = run(apart, asked), run(tight, asked)

    assert isinstance(tight._backend, BlockAttention)
    assert tight.stats().shared_tokens > 10 * BLOCK_SIZE
    record_property("forked_agreement", same_tokens(got, want))
    assert same_tokens(got, want) > 0.5


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
