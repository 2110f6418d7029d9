"""The least time in which a workload can be done on this machine. No torch; `rates.py` measures the machine.

What must be computed, with p prompt tokens and n generated tokens for each row, s tokens that all prompts share, R
rows, H heads, K heads of keys and values, d the size of a head, L layers; float32, 4 bytes a number:

  positions      s + sum(p - s) + sum(n - 1): every token goes through the layers once, what is shared once for all,
                 and the last token of a row not at all: nobody asks what comes after it
  linear FLOPs   2 x inputs x outputs of every linear layer, for each position; of the LM head for each of the
                 sum(n) generated tokens
  attention      4 x L x H x d x c for a position that sees c positions, itself included: 2 for q times k, 2 for the
  FLOPs          sum over v
  KV bytes       8 x L x K x d a position, for its key and value. Each is written once. A decoding token reads those
                 of all positions before it, but what is shared is read once in each step for all rows
  steps          at least the longest n, if all rows run at once
  weight bytes   of all linear layers and the LM head, once in each step

Tokens that are computed a second time (padding, preempted rows, a prefix computed for each row) are not work, and
softmax, norms, embeddings and sampling are left out, so both bounds are below what is possible.

Two bounds come out of it, each part of the work being bound by its FLOPs or its bytes:

  overlapped     max(all FLOPs / rate, all bytes / bandwidth): computing and reading at the same time, perfectly
  in phases      max(linear FLOPs / rate, weight bytes / bandwidth)
                 + prefill attention FLOPs / rate
                 + max(decode attention FLOPs / rate, KV bytes / bandwidth)

The share that is reported is that of the bound in phases, which is never below the other. Within a matrix product
reading the weights and computing do overlap, and the rates are measured with weights that come from memory, as in
any model larger than the caches. But nothing runs beside one: the attention needs the product before it and feeds
the one after it, and the few cores that multiply are the same that would have to read its keys and values.

Each linear layer counts at the best rate that any library reached at its shape with any number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engine_bench.models import Linear, ModelShape
from engine_bench.workloads import Workload

_BYTES = 4


@dataclass(frozen=True)
class Rates:
    """What the machine reached: FLOP/s for each [inputs, outputs] of a weight, and bytes/s read from memory."""

    flops: Mapping[tuple[int, int], float]
    bandwidth: float

    def seconds(self, linear: Linear, rows: int) -> float:
        """Of all layers of one shape, for so many rows."""
        return linear_flops(linear, rows) / self.flops[linear.shape]

    @property
    def best_flops(self) -> float:
        return max(self.flops.values())


@dataclass(frozen=True)
class Need:
    """What a workload needs of a machine."""

    positions: int
    head_rows: int
    linear_flops: int
    prefill_attention_flops: int
    decode_attention_flops: int
    kv_bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class Floor:
    """Seconds."""

    linear: float
    prefill_attention: float
    decode_attention: float
    overlapped: float

    @property
    def in_phases(self) -> float:
        return self.linear + self.prefill_attention + self.decode_attention


def need(shape: ModelShape, workload: Workload) -> Need:
    shared, rows = workload.shared_prefix, workload.rows
    positions = shared + sum(row.prompt - shared + row.output - 1 for row in rows)
    head_rows = workload.output_tokens
    linears = sum(linear_flops(linear, positions) for linear in shape.layer_linears)
    steps = max(row.output for row in rows)
    weights = sum(linear.count * linear.inputs * linear.outputs for linear in (*shape.layer_linears, shape.head))
    per_context = 4 * shape.layers * shape.heads * shape.head_dim
    prefill = _triangle(0, shared) + sum(_triangle(shared, row.prompt) for row in rows)
    decode = sum(_triangle(row.prompt, row.prompt + row.output - 1) for row in rows)
    return Need(
        positions=positions,
        head_rows=head_rows,
        linear_flops=linears + linear_flops(shape.head, head_rows),
        prefill_attention_flops=per_context * prefill,
        decode_attention_flops=per_context * decode,
        kv_bytes=kv_bytes_per_position(shape) * (positions + _kv_reads(workload)),
        weight_bytes=_BYTES * weights * steps,
    )


def floor(shape: ModelShape, workload: Workload, rates: Rates) -> Floor:
    needed = need(shape, workload)
    linear = sum(rates.seconds(one, needed.positions) for one in shape.layer_linears)
    linear += rates.seconds(shape.head, needed.head_rows)
    prefill = needed.prefill_attention_flops / rates.best_flops
    decode = needed.decode_attention_flops / rates.best_flops
    weights, kv = needed.weight_bytes / rates.bandwidth, needed.kv_bytes / rates.bandwidth
    return Floor(
        linear=max(linear, weights),
        prefill_attention=prefill,
        decode_attention=max(decode, kv),
        overlapped=max(linear + prefill + decode, weights + kv),
    )


def linear_flops(linear: Linear, rows: int) -> int:
    return 2 * linear.count * linear.inputs * linear.outputs * rows


def kv_bytes_per_position(shape: ModelShape) -> int:
    return 2 * _BYTES * shape.layers * shape.kv_heads * shape.head_dim


def _kv_reads(workload: Workload) -> int:
    """Positions whose key and value the decoding tokens read from memory.

    The token at position t reads positions 0 to t - 1; its own are at hand. What is shared is read in each of the
    steps of the longest row, once for all.
    """
    shared = workload.shared_prefix
    own = sum(
        _triangle(row.prompt - shared, row.prompt - shared + row.output - 1) - (row.output - 1) for row in workload.rows
    )
    return own + shared * (max(row.output for row in workload.rows) - 1)


def _triangle(first: int, end: int) -> int:
    """How many positions those from ``first`` to ``end - 1`` see together, each seeing itself and all before it."""
    return (end * (end + 1) - first * (first + 1)) // 2
