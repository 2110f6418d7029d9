"""In-flight batching on an accelerator: the promises of the CPU, in slots and in blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from gpu_work import Load, Record, engine_for, requests, run, same, same_tokens
from torch import Tensor

from worker.engine import serving
from worker.engine.attention import KVShape
from worker.engine.block_attention import BLOCK_SIZE, BlockAttention, disagreement
from worker.engine.block_kernels import varlen
from worker.engine.inflight import InflightEngine
from worker.engine.request import Completion, Request
from worker.engine.slot_attention import SlotAttention
from worker.models import LoadedModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


#: Below this distance of the best two logits either token is right, in float32.
NEAR_TIE = 1e-3


def on_slots(loaded: LoadedModel, max_rows: int, monkeypatch: pytest.MonkeyPatch) -> InflightEngine:
    with monkeypatch.context() as patch:
        patch.setattr(serving, "why_not_varlen", lambda *_: "the test says so")
        return engine_for(loaded, max_rows)


@torch.inference_mode()
def margins(model: Any, asked: Request, completion: Completion) -> Tensor:
    """By how much the model alone prefers another token to each that was chosen greedily; 0 where it does not."""
    ids = torch.tensor([[*asked.prompt_ids, *completion.token_ids]], device="cuda")
    logits = model(ids, use_cache=False).logits[0, len(asked.prompt_ids) - 1 : -1].float()
    chosen = torch.tensor(completion.token_ids, device="cuda")
    behind: Tensor = logits.amax(-1) - logits.gather(-1, chosen[:, None]).squeeze(-1)
    return behind


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
