"""What a step attends over in dense slots: rows of a size class that generate, together, and each prompt by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from worker.engine.attention import (
    Layer,
    attend_causally,
    attend_dense,
    attend_one_by_one,
    attend_with_sum,
    merge,
    visible,
)
from worker.engine.row import Row
from worker.engine.scheduler import Chunk


@dataclass(frozen=True, slots=True)
class Arena:
    """The slots of one size class, [layers, slots, KVH, size, D]. Zeros at first: what a mask hides must be finite."""

    keys: Tensor
    values: Tensor

    @property
    def slots(self) -> int:
        return self.keys.shape[1]


@dataclass(slots=True)
class Decode:
    """Rows of one size class that generate, a token each."""

    tokens: slice
    arena: Arena
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
    def of(cls, tokens: slice, arena: Arena, chunks: Sequence[tuple[int, Chunk[Row]]], shared: int) -> Decode:
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
class Prefill:
    """Tokens of one row's prompt."""

    tokens: slice
    arena: Arena
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
