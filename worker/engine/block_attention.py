"""Keys and values in blocks of fixed size, and one call that attends for all rows of a step, prefill and decode alike.

On the host a step is a ``Plan``, made with a few operations on whole arrays; it goes to the device in one transfer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from worker.engine.attention import KVShape, Layer
from worker.engine.block_cache import SCRATCH_BLOCK, BlockCache, CopyBlock, ResizePool
from worker.engine.block_kernels import Kernel, Layout, gathered
from worker.engine.row import Row
from worker.engine.sampling_plan import upload
from worker.engine.scheduler import Chunk

#: Positions of a block: FlashAttention-2, which torch brings along, takes multiples of 256 only.
BLOCK_SIZE = 256

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the T tokens of a step's R rows lie, on the host."""

    #: Of each token, the place of its key in the pool, counted in positions; [T].
    places: Ints
    #: Tokens of each row in the step, and its positions after the step; [R].
    counts: Ints
    lengths: Ints
    #: The blocks of each row, the scratch block after its last; [R, W].
    tables: Ints

    @classmethod
    def of(cls, chunks: Sequence[Chunk[Row]], cache: BlockCache) -> Plan:
        counts = np.array([chunk.count for chunk in chunks])
        starts = np.array([chunk.start for chunk in chunks])
        tables = _side_by_side([cache.table(chunk.row.key) for chunk in chunks])
        positions = np.arange(counts.sum()) + np.repeat(starts - counts.cumsum() + counts, counts)
        blocks, offsets = np.divmod(positions, cache.block_size)
        places = tables[np.repeat(np.arange(len(chunks)), counts), blocks] * cache.block_size + offsets
        return cls(places, counts, starts + counts, tables)

    def padded(self, rows: int, width: int) -> Plan:
        """With rows of one token, at the beginning of the scratch block, up to ``rows``, and tables of ``width``."""
        more, wider = rows - len(self.counts), width - self.tables.shape[1]
        return Plan(
            np.pad(self.places, (0, more), constant_values=SCRATCH_BLOCK),
            np.pad(self.counts, (0, more), constant_values=1),
            np.pad(self.lengths, (0, more), constant_values=1),
            np.pad(self.tables, ((0, more), (0, wider)), constant_values=SCRATCH_BLOCK),
        )

    def numbers(self) -> Ints:
        """All of it in one array, as ``Layout.of`` takes it."""
        starts = [np.concatenate([[0], one.cumsum()]) for one in (self.counts, self.lengths)]
        return np.concatenate([self.places, *starts, self.lengths, self.tables.ravel()])

    def on(self, device: torch.device) -> Layout:
        most = int(self.counts.max()), int(self.lengths.max())
        return Layout.of(upload(self.numbers(), device), len(self.places), len(self.counts), *most)


class Pools(NamedTuple):
    """What the blocks hold, [layers, blocks, block size, KVH, D]."""

    keys: Tensor
    values: Tensor


class BlockAttention:
    """The backend over blocks; of the ``budget``, in positions, it uses whole blocks."""

    def __init__(
        self,
        shape: KVShape,
        dtype: torch.dtype,
        device: torch.device,
        budget: int,
        max_length: int,
        *,
        block_size: int = BLOCK_SIZE,
        kernel: Kernel = gathered,
    ) -> None:
        self.cache = BlockCache(budget // block_size + 1, block_size)
        self.name = f"{kernel.__name__} over blocks"
        self.max_length = max_length
        #: Of the step that was prepared.
        self.plan: Plan
        self._shape = shape
        self._new = partial(torch.empty, dtype=dtype, device=device)
        self._device = device
        self._kernel = kernel
        self._pools: Pools | None = None
        #: Which pools these are, counted: after a ``reset`` there are others, elsewhere in memory.
        self.generation = 0
        self._layout: Layout | None = None

    @property
    def pools(self) -> Pools:
        """Made when they are first needed."""
        if self._pools is None:
            size = self._shape.layers, self.cache.blocks, self.cache.block_size, self._shape.heads
            self._pools = Pools(self._new(*size, self._shape.key_dim), self._new(*size, self._shape.value_dim))
        return self._pools

    @property
    def table_width(self) -> int:
        """The most blocks that a row can have."""
        return max(1, min(-(-self.max_length // self.cache.block_size), self.cache.blocks - 1))

    def prepare(self, chunks: Sequence[Chunk[Row]]) -> list[Chunk[Row]]:
        for operation in self.cache.drain():
            if isinstance(operation, CopyBlock):
                self._copy(operation)
            else:
                self._resize(operation)
        self.plan, self._layout = Plan.of(chunks, self.cache), None
        return [*chunks]

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._layout is None:
            self._layout = self.plan.on(self._device)
        keys, values = (pool[layer.index] for pool in self.pools)
        keys.flatten(0, 1).index_copy_(0, self._layout.places, key.transpose(0, 1))
        values.flatten(0, 1).index_copy_(0, self._layout.places, value.transpose(0, 1))
        return self._kernel(layer, query.transpose(0, 1), keys, values, self._layout)

    @contextmanager
    def laid_out(self, layout: Layout) -> Iterator[None]:
        """Inside, attend by ``layout`` instead of what was prepared."""
        before, self._layout = self._layout, layout
        try:
            yield
        finally:
            self._layout = before

    def reset(self, budget: int | None = None) -> None:
        positions = self.cache.budget if budget is None else budget
        self.cache = BlockCache(positions // self.cache.block_size + 1, self.cache.block_size)
        self._pools = None
        self.generation += 1

    def erase(self, row: Row) -> None:
        """Nothing to do: a kernel without ``disagreement`` sees nothing that its row has not written."""

    def _copy(self, operation: CopyBlock) -> None:
        for pool in self.pools:
            pool[:, operation.target, : operation.positions] = pool[:, operation.source, : operation.positions]

    def _resize(self, operation: ResizePool) -> None:
        if self._pools is not None:
            self._pools = Pools(*(pool[:, : operation.blocks].clone() for pool in self._pools))
            self.generation += 1


def _side_by_side(tables: Sequence[Sequence[int]]) -> Ints:
    """[R, longest], filled up with the scratch block."""
    lengths = np.array([len(table) for table in tables])
    filled = np.full((len(tables), lengths.max()), SCRATCH_BLOCK)
    filled[np.arange(filled.shape[1]) < lengths[:, None]] = [*chain.from_iterable(tables)]
    return filled


class _Key(NamedTuple):
    """A row of ``disagreement``."""

    key: int


@torch.inference_mode()
def disagreement(
    kernel: Kernel, shape: KVShape, dtype: torch.dtype, device: torch.device, block_size: int = BLOCK_SIZE
) -> float:
    """How far ``kernel`` is from ``gathered``, as a share of the size of what they give; NaN if not even finite.

    In one layer of ``shape``, with two query heads for each of keys: rows in one and in several blocks, prefill,
    decode and both at once, with a window and without. What no row has written is NaN.
    """
    backend = BlockAttention(
        shape._replace(layers=1), dtype, device, 8 * block_size, 4 * block_size, block_size=block_size, kernel=kernel
    )
    for pool in backend.pools:
        pool.fill_(torch.nan)
    scale, done, apart = shape.key_dim**-0.5, [0, 0, 0], []
    for counts in ((2 * block_size - 1, 3, block_size + 5), (1, 9, 1), (1, 1, 1)):
        _prepare(backend, done, counts)
        query, key, value = _random(shape, sum(counts), dtype, device)
        for layer in (Layer(0, scale), Layer(0, scale, window=block_size // 2 + 1)):
            got = backend.attend(layer, query, key, value)
            keys, values = (pool[0] for pool in backend.pools)
            want = gathered(layer, query.transpose(0, 1), keys, values, backend.plan.on(device))
            apart.append((got.float() - want.float()).norm() / want.float().norm())
    return torch.stack(apart).max().item()


def _prepare(backend: BlockAttention, done: list[int], counts: Sequence[int]) -> None:
    """A step in which each row goes on by its count from what is ``done``, which is brought up to date."""
    chunks = [Chunk(cast(Row, _Key(row)), done[row], count, samples=True) for row, count in enumerate(counts)]
    for row, count in enumerate(counts):
        done[row] += count
        backend.cache.reserve(row, done[row])
    backend.prepare(chunks)


def _random(shape: KVShape, tokens: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Queries, keys and values of ``tokens`` tokens, [H, T, D]."""
    generator = torch.Generator().manual_seed(tokens)
    sizes = (2 * shape.heads, shape.key_dim), (shape.heads, shape.key_dim), (shape.heads, shape.value_dim)
    return [torch.randn(heads, tokens, dim, generator=generator).to(device=device, dtype=dtype) for heads, dim in sizes]
