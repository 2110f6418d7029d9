"""The floor of the benchmark of the engine: what no engine can do in less time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from engine_bench.floor import Rates, floor, need
from engine_bench.models import MODELS, ModelShape
from engine_bench.workloads import WORKLOADS, Lengths, Workload, workload

#: Small enough to count by hand: 2 layers of 128 weights (4 x 12, 4 x 4, 4 x 8, 8 x 4), a head of 40.
SMALL = ModelShape("gpt2", hidden=4, layers=2, heads=2, kv_heads=2, intermediate=8, vocabulary=10, context=32)


class TestTheFloor:
    def test_every_token_but_a_rows_last_goes_through_the_layers_and_every_output_token_through_the_head(self) -> None:
        needed = need(SMALL, Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0))
        assert needed.positions == (3 + 1) + (1 + 0)
        assert needed.head_rows == 2 + 1
        assert needed.linear_flops == 2 * (2 * 128) * 5 + 2 * 40 * 3

    def test_attention_sees_each_position_and_all_before_it(self) -> None:
        needed = need(SMALL, Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0))
        per_context = 4 * 2 * 2 * 2
        assert needed.prefill_attention_flops == per_context * ((1 + 2 + 3) + 1)
        assert needed.decode_attention_flops == per_context * 4

    def test_bytes_are_the_weights_in_each_step_and_keys_and_values_written_once_and_read_by_each_token(self) -> None:
        needed = need(SMALL, Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0))
        assert needed.weight_bytes == 4 * (2 * 128 + 40) * 2
        # Two numbers of 4 bytes for each of 2 layers, 2 heads and 2 places; 5 written, 3 read by the one token.
        assert needed.kv_bytes == (2 * 4 * 2 * 2 * 2) * (5 + 3)

    def test_what_prompts_share_is_computed_once_and_read_once_in_each_step(self) -> None:
        needed = need(SMALL, Workload("shared-prefix", (Lengths(3, 2), Lengths(4, 2)), seed=0, shared_prefix=2))
        assert needed.positions == 2 + (1 + 1) + (2 + 1)
        per_context = 4 * 2 * 2 * 2
        assert needed.prefill_attention_flops == per_context * ((1 + 2) + 3 + (3 + 4))
        assert needed.decode_attention_flops == per_context * (4 + 5)
        # Read: one own position of the first row, two of the second, and the two shared in the one step.
        assert needed.kv_bytes == (2 * 4 * 2 * 2 * 2) * (7 + (1 + 2 + 2))

    def test_grouped_queries_have_fewer_keys_and_values_and_as_much_attention(self) -> None:
        work = Workload("mixed", (Lengths(5, 4),), seed=0)
        grouped = need(replace(SMALL, kv_heads=1), work)
        assert grouped.kv_bytes * 2 == need(SMALL, work).kv_bytes
        assert grouped.decode_attention_flops == need(SMALL, work).decode_attention_flops

    def test_each_phase_takes_what_its_flops_or_its_bytes_take(self) -> None:
        work = Workload("mixed", (Lengths(3, 2), Lengths(1, 1)), seed=0)
        shapes = [linear.shape for linear in (*SMALL.layer_linears, SMALL.head)]
        slow_memory = floor(SMALL, work, Rates(dict.fromkeys(shapes, 1e12), bandwidth=1.0))
        assert (slow_memory.linear, slow_memory.decode_attention) == (2368, 512)
        assert slow_memory.overlapped == 2368 + 512
        slow_products = floor(SMALL, work, Rates(dict.fromkeys(shapes, 1.0), bandwidth=1e12))
        assert slow_products.linear == 2800
        assert (slow_products.prefill_attention, slow_products.decode_attention) == (32 * 7, 32 * 4)
        assert slow_products.in_phases == slow_products.overlapped == 2800 + 32 * 11

    def test_each_shape_of_weight_counts_at_its_own_rate(self) -> None:
        work = Workload("mixed", (Lengths(3, 1),), seed=0)
        flops = {(4, 12): 1.0, (4, 4): 2.0, (4, 8): 4.0, (8, 4): 8.0, (4, 10): 16.0}
        positions = 3
        expected = 2 * 2 * positions * (48 / 1 + 16 / 2 + 32 / 4 + 32 / 8) + 2 * 40 / 16
        assert floor(SMALL, work, Rates(flops, bandwidth=1e12)).linear == expected

    @pytest.mark.parametrize("seed", range(20))
    def test_doing_one_after_the_other_never_takes_less_than_overlapping_all(self, seed: int) -> None:
        rng = random.Random(seed)
        shape = rng.choice([*MODELS.values(), SMALL])
        work = workload(rng.choice(WORKLOADS), rng.randint(1, 40), seed)
        flops = {linear.shape: 10 ** rng.uniform(8, 13) for linear in (*shape.layer_linears, shape.head)}
        bound = floor(shape, work, Rates(flops, bandwidth=10 ** rng.uniform(8, 13)))
        assert bound.in_phases >= bound.overlapped * (1 - 1e-9)
