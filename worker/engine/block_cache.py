"""Rows in blocks of a fixed number of positions, for paged attention; rows with a common beginning share blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.kv_cache import check_fork, check_positions, check_shrink

#: The block that belongs to no row: what padding rows of a captured graph write goes there, and is never read.
SCRATCH_BLOCK = 0


@dataclass(frozen=True, slots=True)
class CopyBlock:
    """The first ``positions`` positions of block ``source`` are to be in block ``target`` as well."""

    source: int
    target: int
    positions: int


@dataclass(frozen=True, slots=True)
class ResizePool:
    """Only blocks ``0 .. blocks - 1`` are used from now on, so the memory of the others can go."""

    blocks: int


Operation = CopyBlock | ResizePool


@dataclass(slots=True)
class _Row:
    blocks: list[int] = field(default_factory=list)
    positions: int = 0


class BlockCache:
    """A `KVCache` over a pool of ``blocks`` blocks of ``block_size`` positions each.

    Block 0 is always `SCRATCH_BLOCK`: ``blocks`` counts it, the budget does not. Position ``p`` of a row lies in
    block ``table(key)[p // block_size]`` at offset ``p % block_size``.

    A fork shares the donor's full blocks, which are freed with the last row that has them, and copies the block
    that it shares only in part. A row writes only positions that it did not get from its donor, and no donor
    writes again what it has given, so nobody ever writes to a shared block. What a block holds when it comes to a
    row is undefined. ``reserve``, ``fork`` and ``free`` take constant time for each block.
    """

    def __init__(self, blocks: int, block_size: int) -> None:
        if min(blocks, block_size) < 1:
            raise ValueError("a block cache needs at least the scratch block, and blocks of at least one position")
        self.block_size = block_size
        self._pool = self._blocks = blocks
        #: How many rows have each block.
        self._users = [0] * blocks
        # Taken from the end: low blocks first, so that a pool that shrinks early has little in the way.
        self._free: list[int] = list(range(blocks - 1, SCRATCH_BLOCK, -1))
        self._taken = 0
        #: Blocks that are beyond a budget that shrank, and are still in use.
        self._beyond = 0
        self._rows: dict[int, _Row] = {}
        self._operations: list[Operation] = []

    @property
    def budget(self) -> int:
        """Positions in whole blocks, without the scratch block."""
        return (self._blocks - 1) * self.block_size

    @property
    def blocks(self) -> int:
        """Blocks that the device's pool must have, the scratch block included."""
        return self._pool

    @property
    def used_ratio(self) -> float:
        """The share of the blocks that rows have; a shared block counts once."""
        usable = self._blocks - 1
        return min(1.0, self._taken / usable) if usable else float(self._taken > 0)

    def reserve(self, key: int, positions: int) -> bool:
        check_positions(positions)
        row = self._rows.get(key) or _Row()
        missing = self._blocks_for(positions) - len(row.blocks)
        if not self._has_room(missing):
            return False
        row.blocks += [self._take() for _ in range(missing)]
        row.positions = max(row.positions, positions)
        self._rows[key] = row
        return True

    def fork(self, key: int, donor: int, positions: int) -> int:
        """See `KVCache`. Takes one block, or none if ``positions`` is a multiple of the block size."""
        check_fork(self, key, donor, positions)
        full, rest = divmod(positions, self.block_size)
        if not self._has_room(min(rest, 1)):
            return 0
        source = self._rows[donor].blocks
        row = _Row(source[:full], positions)
        for block in row.blocks:
            self._users[block] += 1
        if rest:
            row.blocks.append(self._take())
            self._operations.append(CopyBlock(source[full], row.blocks[full], rest))
        self._rows[key] = row
        return positions

    def free(self, key: int) -> None:
        # The last block first, so that the next row takes them in their order.
        for block in reversed(self._rows.pop(key).blocks):
            self._users[block] -= 1
            if not self._users[block]:
                self._give_back(block)

    def held(self, key: int) -> int:
        row = self._rows.get(key)
        return row.positions if row is not None else 0

    def fits(self, positions: int) -> bool:
        return self._blocks_for(positions) < self._blocks

    def shrink(self, budget: int) -> None:
        """See `KVCache`. Blocks are given up from the end of the pool, those in use once they are freed.

        When the last one has gone, ``drain`` tells the device that its pool can be smaller.
        """
        check_shrink(self, budget)
        self._blocks = budget // self.block_size + 1
        self._free = [block for block in self._free if block < self._blocks]
        self._beyond = sum(users > 0 for users in self._users[self._blocks :])

    def table(self, key: int) -> Sequence[int]:
        """The blocks of a row in the order of its positions. Raises KeyError if it is unknown."""
        return self._rows[key].blocks

    def drain(self) -> list[Operation]:
        """Take the operations that the device has to carry out, in order, before the next forward pass."""
        operations, self._operations = self._operations, []
        if self._pool > self._blocks and not self._beyond:
            self._pool = self._blocks
            operations.append(ResizePool(self._pool))
        return operations

    def _blocks_for(self, positions: int) -> int:
        return -(-positions // self.block_size)

    def _has_room(self, missing: int) -> bool:
        """Whether that many blocks can be taken. Rows beyond a budget that shrank can leave free ones that cannot."""
        return missing <= 0 or self._taken + missing < self._blocks

    def _take(self) -> int:
        block = self._free.pop()
        self._users[block] = 1
        self._taken += 1
        return block

    def _give_back(self, block: int) -> None:
        self._taken -= 1
        if block < self._blocks:
            self._free.append(block)
        else:
            self._beyond -= 1
