"""Keys and values in dense slots, and scaled_dot_product_attention over them: for any device.

Rows of similar length lie side by side in the arena of their size class, so that one call per class attends for all of
its rows that generate, over a window that is cut to the longest of them. A prompt attends alone.

Where the rows of a class begin alike, as those of a job's template do, what they share is attended to once for all of
them, from one row's slot: a step then reads it once, and not once for each row. The two parts are merged by the
sums of their softmaxes (Juravsky et al., "Hydragen", 2024, arXiv 2402.05099).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention import (
    KVShape,
    Layer,
    attend_causally,
    attend_dense,
    attend_one_by_one,
    attend_with_sum,
    merge,
    visible,
)
from worker.engine.prefixes import common
from worker.engine.row import Row
from worker.engine.scheduler import Chunk
from worker.engine.slot_cache import Copy, Resize, SlotCache

#: Attending twice and merging costs more than it saves for fewer rows, or for a shorter beginning.
MIN_ROWS, MIN_POSITIONS = 4, 64

#: Bytes. What begins between two lines is read more slowly.
_CACHE_LINE = 64


class SlotAttention:
    """The backend for devices without a kernel for paged blocks."""

    name = "sdpa over slots"

    def __init__(self, shape: KVShape, dtype: torch.dtype, device: torch.device, budget: int, max_length: int) -> None:
        self.cache = SlotCache(budget, max_length)
        self._new = partial(_zeros, dtype=dtype, device=device)
        self._shape = shape
        self._max_length = max_length
        self._device = device
        #: By the size of their slots, the keys of the rows that generated last, and how many tokens they share.
        self._alike: dict[int, tuple[tuple[int, ...], int]] = {}
        self._arenas: dict[int, _Arena] = {}
        self._segments: list[_Decode | _Prefill] = []

    def prepare(self, chunks: Sequence[Chunk[Row]]) -> list[Chunk[Row]]:
        # The segments of the last step hold arenas that may be replaced now.
        self._segments.clear()
        for operation in self.cache.drain():
            if isinstance(operation, Resize):
                self._arenas[operation.size] = self._resized(operation)
            else:
                self._copy(operation)
        return self._lay_out(chunks)

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
        for segment in self._segments:
            tokens = segment.tokens
            segment.attend(layer, query[:, tokens], key[:, tokens], value[:, tokens], out[tokens])
        return out

    def reset(self, budget: int | None = None) -> None:
        self.cache = SlotCache(self.cache.budget if budget is None else budget, self._max_length)
        self._arenas.clear()
        self._segments.clear()

    def erase(self, row: Row) -> None:
        slot = self.cache.slot_of(row.key)
        arena = self._arenas[slot.size]
        arena.keys[:, slot.index] = 0
        arena.values[:, slot.index] = 0

    def _lay_out(self, chunks: Sequence[Chunk[Row]]) -> list[Chunk[Row]]:
        """The step's segments: for each size class those that generate, in order of their slots; then the prompts."""
        decoding: dict[int, list[tuple[int, Chunk[Row]]]] = {}
        prompts: list[Chunk[Row]] = []
        for chunk in chunks:
            if chunk.count == 1:
                slot = self.cache.slot_of(chunk.row.key)
                decoding.setdefault(slot.size, []).append((slot.index, chunk))
            else:
                prompts.append(chunk)
        self._segments = []
        ordered: list[Chunk[Row]] = []
        for size, rows in sorted(decoding.items()):
            rows.sort(key=lambda row: row[0])
            at = slice(len(ordered), len(ordered) + len(rows))
            ordered += [chunk for _, chunk in rows]
            self._segments.append(_Decode.of(at, self._arenas[size], rows, self._shared(size, ordered[at])))
        first = sum(len(rows) for rows in decoding.values())
        for chunk in prompts:
            slot = self.cache.slot_of(chunk.row.key)
            at = slice(first, first + chunk.count)
            self._segments.append(_Prefill(at, self._arenas[slot.size], slot.index, chunk.start))
            first = at.stop
        return ordered + prompts

    def _shared(self, size: int, chunks: Sequence[Chunk[Row]]) -> int:
        """With how many tokens all of these rows begin, in slots of ``size``; 0 if that is of no use."""
        # The kernel that gives the sums of its softmaxes is the CPU's, and takes keys and values of one size.
        if len(chunks) < MIN_ROWS or self._device.type != "cpu" or self._shape.key_dim != self._shape.value_dim:
            return 0
        keys = tuple(chunk.row.key for chunk in chunks)
        known, alike = self._alike.get(size, ((), 0))
        if known != keys:
            first, *others = (chunk.row.prompt_ids for chunk in chunks)
            alike = min(common(first, other) for other in others)
            self._alike[size] = keys, alike
        shared = min(alike, min(chunk.start for chunk in chunks))
        return shared if shared >= MIN_POSITIONS else 0

    def _resized(self, operation: Resize) -> _Arena:
        shape, old = self._shape, self._arenas.get(operation.size)
        sides = [
            self._new((shape.layers, operation.slots, shape.heads, operation.size, dim))
            for dim in (shape.key_dim, shape.value_dim)
        ]
        arena = _Arena(*sides)
        if old is not None:
            kept = min(old.slots, operation.slots)
            arena.keys[:, :kept] = old.keys[:, :kept]
            arena.values[:, :kept] = old.values[:, :kept]
        return arena

    def _copy(self, operation: Copy) -> None:
        source, target = operation.source, operation.target
        old, new = self._arenas[source.size], self._arenas[target.size]
        window = slice(0, operation.positions)
        new.keys[:, target.index, :, window] = old.keys[:, source.index, :, window]
        new.values[:, target.index, :, window] = old.values[:, source.index, :, window]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take no memory, and no time, before they are written to, where the device is a CPU.

    NumPy takes them from the system as they are, which has them zeroed when they are touched, in large pages if it can;
    ``torch.zeros`` writes to them all, and a step that needs a new arena would wait for that.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + _CACHE_LINE, dtype=np.uint8)
    first = -memory.ctypes.data % _CACHE_LINE
    return torch.from_numpy(memory[first : first + size]).view(dtype).view(shape)


@dataclass(frozen=True, slots=True)
class _Arena:
    """The slots of one size class, [layers, slots, KVH, size, D]. Zeros at first: what a mask hides must be finite."""

    keys: Tensor
    values: Tensor

    @property
    def slots(self) -> int:
        return self.keys.shape[1]


@dataclass(slots=True)
class _Decode:
    """Rows of one size class that generate, a token each."""

    tokens: slice
    arena: _Arena
    #: The slots of the rows, and the position of each one's token; int64 [n].
    slots: Tensor
    positions: Tensor
    #: Slots up to the last of the rows, and positions up to the longest: what is attended over.
    rows: int
    width: int
    #: Positions at the beginning that all of the rows share.
    shared: int
    #: Positions [rows, 1] in order of slots; -1 where the slot's row does not generate now.
    _where: Tensor
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    @classmethod
    def of(cls, tokens: slice, arena: _Arena, chunks: Sequence[tuple[int, Chunk[Row]]], shared: int) -> _Decode:
        slots, positions = [slot for slot, _ in chunks], [chunk.start for _, chunk in chunks]
        rows, device = slots[-1] + 1, arena.keys.device
        at, where = torch.tensor(slots, device=device), torch.full((rows, 1), -1, device=device)
        now = torch.tensor(positions, device=device)
        where[at, 0] = now
        return cls(tokens, arena, at, now, rows, max(positions) + 1, shared, where)

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        layer = layer.over(self.width)
        keys, values = self.arena.keys[layer.index], self.arena.values[layer.index]
        keys[self.slots, :, self.positions] = key.transpose(0, 1)
        values[self.slots, :, self.positions] = value.transpose(0, 1)
        keys, values = keys[: self.rows, :, : self.width], values[: self.rows, :, : self.width]
        # The query heads that share a key head are its queries: [rows, KVH, H / KVH, D].
        queries = query.transpose(0, 1).reshape(len(self.slots), key.shape[0], -1, query.shape[-1])
        if gaps := self.rows != len(self.slots):
            queries = queries.new_zeros(self.rows, *queries.shape[1:]).index_copy_(0, self.slots, queries)
        mask = self._mask(layer.window, query.dtype)
        if self.shared and layer.plain:
            attended = self._attend_in_parts(layer, queries, keys, values, mask)
        else:
            attended = attend_one_by_one(layer, queries, keys, values, mask)
        if gaps:
            attended = attended[self.slots]
        out.copy_(attended.reshape(out.shape))

    def _attend_in_parts(
        self, layer: Layer, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """What the rows share from one slot, for the queries of all; what is each one's own from its own."""
        rows, heads, groups, dim = queries.shape
        together = queries.transpose(0, 1).reshape(1, heads, rows * groups, dim)
        one = self.slots[:1]
        common_part, common_sum = attend_with_sum(
            layer, together, keys[one, :, : self.shared], values[one, :, : self.shared]
        )
        own_mask = None if mask is None else mask[..., self.shared :]
        own_part, own_sum = attend_with_sum(
            layer, queries, keys[:, :, self.shared :], values[:, :, self.shared :], own_mask
        )
        common_part = common_part.view(heads, rows, groups, -1).transpose(0, 1)
        return merge(common_part, common_sum.view(heads, rows, groups).transpose(0, 1), own_part, own_sum)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive [rows, 1, 1, width]; None if every row sees every position."""
        if window not in self._masks:
            seen = visible(self._where, torch.arange(self.width, device=self._where.device), window)[:, None]
            # A slot that does not generate sees a position all the same: no softmax over nothing.
            seen[..., self.shared] |= self._where[:, :, None] < 0
            self._masks[window] = None if bool(seen.all()) else _additive(seen, dtype)
        return self._masks[window]


@dataclass(slots=True)
class _Prefill:
    """Tokens of one row's prompt."""

    tokens: slice
    arena: _Arena
    slot: int
    start: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> None:
        keys, values = self.arena.keys[layer.index, self.slot], self.arena.values[layer.index, self.slot]
        stop = self.start + key.shape[1]
        layer = layer.over(stop)
        keys[:, self.start : stop] = key
        values[:, self.start : stop] = value
        groups = query.shape[0] // key.shape[0]
        keys, values = (
            side[:, :stop].repeat_interleave(groups, 0) if groups > 1 else side[:, :stop] for side in (keys, values)
        )
        if layer.plain and self.start == 0:
            attended = attend_causally(layer, query[None], keys[None], values[None])
        else:
            mask = self._mask(layer.window, stop, query)
            attended = attend_dense(layer, query[None], keys[None], values[None], mask)
        out.copy_(attended[0].transpose(0, 1))

    def _mask(self, window: int | None, stop: int, query: Tensor) -> Tensor:
        """Additive [T, start + T]."""
        if window not in self._masks:
            positions = torch.arange(stop, device=query.device)
            self._masks[window] = _additive(visible(positions[self.start :], positions, window), query.dtype)
        return self._masks[window]


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
