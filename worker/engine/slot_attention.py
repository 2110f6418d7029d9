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
from functools import partial

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention import KVShape, Layer
from worker.engine.prefixes import common
from worker.engine.row import Row
from worker.engine.scheduler import Chunk
from worker.engine.slot_cache import Copy, Resize, SlotCache
from worker.engine.slot_segments import Arena, Decode, Prefill

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
        self._arenas: dict[int, Arena] = {}
        self._segments: list[Decode | Prefill] = []

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
            self._segments.append(Decode.of(at, self._arenas[size], rows, self._shared(size, ordered[at])))
        first = sum(len(rows) for rows in decoding.values())
        for chunk in prompts:
            slot = self.cache.slot_of(chunk.row.key)
            at = slice(first, first + chunk.count)
            self._segments.append(Prefill(at, self._arenas[slot.size], slot.index, chunk.start))
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

    def _resized(self, operation: Resize) -> Arena:
        shape, old = self._shape, self._arenas.get(operation.size)
        sides = [
            self._new((shape.layers, operation.slots, shape.heads, operation.size, dim))
            for dim in (shape.key_dim, shape.value_dim)
        ]
        arena = Arena(*sides)
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
