"""Attention of all rows of a step over keys and values that lie in blocks, in one call.

``varlen`` is FlashAttention with a block table, for CUDA. ``gathered`` puts each row's blocks side by side and attends
with plain matrices, on any device. Layers with softcap or sinks are not for ``varlen``: models that have some run on
slots. (FlexAttention over the blocks could take them; it needs a compiler.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from worker.engine.attention import KVShape, Layer, attend_dense, visible

try:
    from torch.nn.attention import current_flash_attention_impl
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # older than torch 2.12, which brought the block table
    varlen_attn = None  # type: ignore[assignment]

#: The widest head of FlashAttention-2; widths are multiples of 8.
_MAX_HEAD = 256


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the T tokens of a step's R rows lie, on the device. All int32 but ``places``."""

    #: Of each token, the place of its key in the pool, counted in positions; int64 [T].
    places: Tensor
    #: Where each row's tokens begin among those of the step, and its positions among those of all rows; [R + 1].
    query_starts: Tensor
    key_starts: Tensor
    #: Positions of each row after the step, [R].
    lengths: Tensor
    #: The blocks of each row, [R, W].
    tables: Tensor
    #: No row has more tokens in the step, and none has more positions.
    max_query: int
    max_key: int

    @classmethod
    def of(cls, numbers: Tensor, tokens: int, rows: int, max_query: int, max_key: int) -> Layout:
        """From the int64 ``numbers`` of a plan, which has the fields one after the other."""
        others = numbers[tokens:].int()
        ends = rows + 1, 2 * rows + 2, 3 * rows + 2
        query_starts, key_starts, lengths, tables = others.tensor_split(ends)
        return cls(numbers[:tokens], query_starts, key_starts, lengths, tables.view(rows, -1), max_query, max_key)


#: Attends with queries [T, H, D] to the pools of a layer, [blocks, block size, KVH, D]; gives [T, H, D].
Kernel = Callable[[Layer, Tensor, Tensor, Tensor, Layout], Tensor]


def varlen(layer: Layer, query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """FlashAttention. Raises ValueError for a layer with terms that it does not have."""
    if layer.softcap is not None or layer.sinks is not None:
        raise ValueError("FlashAttention in torch has neither softcap nor sinks")
    # Where each row has its last token only, all is seen; not called causal, heads that share keys go together.
    ahead = -1 if layout.max_query == 1 and layer.window is None else 0
    attended = varlen_attn(
        query.contiguous(),
        keys,
        values,
        layout.query_starts,
        # FlashAttention-2 needs them; 3 and 4 refuse them beside a block table.
        layout.key_starts if current_flash_attention_impl() is None else None,
        layout.max_query,
        layout.max_key,
        scale=layer.scaling,
        window_size=(-1 if layer.window is None else layer.window - 1, ahead),
        enable_gqa=query.shape[1] != keys.shape[2],
        seqused_k=layout.lengths,
        block_table=layout.tables,
        # What a row gets must not depend on its company. And FlashAttention-2 splits keys in blocks wrongly:
        # github.com/pytorch/pytorch/issues/194167.
        num_splits=1,
    )
    return cast(Tensor, attended)


def gathered(layer: Layer, query: Tensor, keys: Tensor, values: Tensor, layout: Layout) -> Tensor:
    """Each row by itself, in plain matrices; waits for the device."""
    out = query.new_empty(*query.shape[:2], values.shape[-1])
    starts, groups = layout.query_starts.tolist(), query.shape[1] // keys.shape[2]
    for row, length in enumerate(layout.lengths.tolist()):
        tokens = slice(starts[row], starts[row + 1])
        blocks = layout.tables[row].long()
        # [H, S, D]
        own = [
            pool[blocks].flatten(0, 1)[:length].repeat_interleave(groups, 1).transpose(0, 1) for pool in (keys, values)
        ]
        positions = torch.arange(length, device=query.device)
        seen = visible(positions[length - tokens.stop + tokens.start :], positions, layer.window)
        mask = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill_(~seen, -torch.inf)
        attended = attend_dense(layer, query[tokens].transpose(0, 1)[None], own[0][None], own[1][None], mask)
        out[tokens] = attended[0].transpose(0, 1)
    return out


def why_not_varlen(shape: KVShape, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why ``varlen`` cannot serve keys and values of ``shape``; None if nothing is known against it."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return f"{device} is no CUDA device of capability 8.0 or more"
    if varlen_attn is None or not {"block_table", "num_splits"} <= {*inspect.signature(varlen_attn).parameters}:
        return f"torch {torch.__version__} has no varlen_attn with block_table and num_splits"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"FlashAttention does not compute in {dtype}"
    if shape.key_dim != shape.value_dim or shape.key_dim % 8 or shape.key_dim > _MAX_HEAD:
        return f"FlashAttention has no heads of {shape.key_dim} and {shape.value_dim} numbers"
    return None
