"""Rows in blocks: who has which, who shares them, and what has to be copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import pytest
from cache_work import CacheMachine, garbage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, run_state_machine_as_test

from worker.engine.block_cache import SCRATCH_BLOCK, BlockCache, CopyBlock, ResizePool


def cache(blocks: int = 10, rows: dict[int, int] | None = None) -> BlockCache:
    """A cache of blocks of 16 positions that holds ``rows``, with nothing left to be carried out."""
    made = BlockCache(blocks + 1, 16)
    for key, positions in (rows or {}).items():
        assert made.reserve(key, positions)
    made.drain()
    return made


class BlockDevice:
    """The pool as a list of blocks, which are lists of positions."""

    def __init__(self, cache: BlockCache) -> None:
        self.cache = cache
        self.pool = [garbage(cache.block_size) for _ in range(cache.blocks)]

    def run(self) -> None:
        for operation in self.cache.drain():
            if isinstance(operation, ResizePool):
                assert operation.blocks < len(self.pool)
                del self.pool[operation.blocks :]
            else:
                source, target, positions = operation.source, operation.target, operation.positions
                assert source != target
                assert 0 < positions < self.cache.block_size
                self.pool[target][:positions] = self.pool[source][:positions]
        assert len(self.pool) == self.cache.blocks
        self.pool[SCRATCH_BLOCK][:] = garbage(self.cache.block_size)

    def cell(self, key: int, position: int) -> tuple[list[int], int]:
        block, offset = divmod(position, self.cache.block_size)
        return self.pool[self.cache.table(key)[block]], offset

    def has_room(self, rows: Iterable[int], key: int, positions: int, donor: int | None) -> bool:
        size = self.cache.block_size
        taken = {block for row in rows for block in self.cache.table(row)}
        own = len(self.cache.table(key)) if self.cache.held(key) else 0
        if donor is not None:
            own = positions // size
        missing = -(-positions // size) - own
        return missing <= 0 or (len(taken) + missing) * size <= self.cache.budget


class BlockMachine(CacheMachine):
    @initialize(blocks=st.integers(1, 30), block_size=st.integers(1, 8))
    def start(self, blocks: int, block_size: int) -> None:
        self.blocks = BlockCache(blocks, block_size)
        self.device = BlockDevice(self.blocks)

    @invariant()
    def blocks_are_shared_only_where_nobody_writes_again(self) -> None:
        if hasattr(self, "device"):
            users = defaultdict(list)
            for key in self.rows:
                for place, block in enumerate(self.blocks.table(key)):
                    users[block].append((key, place))
            assert SCRATCH_BLOCK not in users
            for shared in users.values():
                assert len({place for _, place in shared}) == 1
                end = (shared[0][1] + 1) * self.blocks.block_size
                assert len(shared) == 1 or all(len(self.rows[key]) >= end for key, _ in shared)

    def check_nothing_leaked(self) -> None:
        if self.cache.budget:
            key = next(self.keys)
            assert self.cache.reserve(key, self.cache.budget)
            assert sorted(self.blocks.table(key)) == [*range(1, self.blocks.blocks)]
            assert not self.cache.reserve(next(self.keys), 1)


def test_each_row_reads_what_was_written_for_it_whatever_happens_to_the_others() -> None:
    run_state_machine_as_test(BlockMachine, settings=settings(max_examples=120, stateful_step_count=40, deadline=None))


def test_a_row_takes_as_many_blocks_as_its_positions_need() -> None:
    blocks = cache()
    for positions, needed in ((1, 1), (16, 1), (17, 2), (48, 3), (5, 3)):
        assert blocks.reserve(7, positions)
        assert len(blocks.table(7)) == needed
    assert blocks.held(7) == 48
    assert blocks.drain() == []


def test_a_fork_shares_full_blocks_and_copies_the_one_in_part() -> None:
    blocks = cache(rows={1: 40})
    assert blocks.fork(2, 1, 37) == 37
    first, second, third = blocks.table(1)
    own = blocks.table(2)[2]
    assert [*blocks.table(2)] == [first, second, own]
    assert own != third
    assert blocks.drain() == [CopyBlock(third, own, 5)]
    assert blocks.used_ratio == 4 / 10


def test_a_fork_of_full_blocks_takes_none() -> None:
    blocks = cache(blocks=3, rows={1: 48})
    assert blocks.fork(2, 1, 32) == 32
    assert [*blocks.table(2)] == [*blocks.table(1)][:2]
    assert blocks.drain() == []
    assert blocks.fork(3, 1, 33) == 0
    assert blocks.held(3) == 0


def test_shared_blocks_outlive_the_donor_and_go_with_the_last_row() -> None:
    blocks = cache(rows={1: 32})
    for key in (2, 3):
        assert blocks.fork(key, key - 1, 32) == 32
    kept = [*blocks.table(1)]
    blocks.free(1)
    blocks.free(2)
    assert [*blocks.table(3)] == kept
    assert blocks.used_ratio == 0.2
    blocks.free(3)
    assert blocks.used_ratio == 0


def test_the_scratch_block_is_never_given_to_a_row() -> None:
    blocks = cache(blocks=4, rows={1: 64})
    assert sorted(blocks.table(1)) == [1, 2, 3, 4]
    assert blocks.budget == 64
    assert not blocks.reserve(2, 1)


def test_a_row_fits_if_the_whole_pool_would_hold_it() -> None:
    blocks = cache(blocks=4, rows={1: 60})
    assert blocks.fits(64)
    assert not blocks.fits(65)
    assert not BlockCache(1, 16).fits(1)
    assert BlockCache(1, 16).used_ratio == 0


def test_a_smaller_budget_leaves_rows_alone_and_refuses_new_room_until_enough_is_freed() -> None:
    blocks = cache(blocks=8, rows={1: 64, 2: 64})
    blocks.shrink(79)
    assert blocks.budget == 64
    assert blocks.used_ratio == 1
    assert not blocks.reserve(3, 1)
    assert blocks.fork(3, 1, 32) == 32
    blocks.free(2)
    assert not blocks.reserve(4, 1)
    blocks.free(1)
    assert blocks.reserve(4, 32)
    assert not blocks.reserve(3, 33)


def test_the_pool_can_shrink_once_no_row_has_a_block_beyond_the_budget() -> None:
    blocks = cache(blocks=8, rows={1: 64, 2: 16})
    assert [*blocks.table(2)] == [5]
    blocks.shrink(64)
    blocks.free(1)
    assert blocks.drain() == []
    assert blocks.blocks == 9
    blocks.free(2)
    assert blocks.drain() == [ResizePool(5)]
    assert blocks.blocks == 5
    assert blocks.drain() == []
    assert blocks.reserve(3, 64)
    assert sorted(blocks.table(3)) == [1, 2, 3, 4]


def test_blocks_beyond_a_smaller_budget_are_never_given_out() -> None:
    blocks = cache(blocks=8, rows={1: 64, 2: 64})
    blocks.free(1)
    blocks.free(2)
    blocks.shrink(64)
    assert blocks.reserve(3, 64)
    assert sorted(blocks.table(3)) == [1, 2, 3, 4]


def test_calls_that_make_no_sense_are_errors() -> None:
    blocks = cache(rows={1: 10, 2: 10})
    with pytest.raises(KeyError):
        blocks.free(3)
    with pytest.raises(KeyError):
        blocks.fork(4, 3, 1)
    with pytest.raises(KeyError):
        blocks.table(3)
    with pytest.raises(ValueError, match="in the cache already"):
        blocks.fork(2, 1, 5)
    with pytest.raises(ValueError, match="fewer than 11"):
        blocks.fork(3, 1, 11)
    with pytest.raises(ValueError, match="at least one position"):
        blocks.reserve(3, 0)
    with pytest.raises(ValueError, match="cannot shrink"):
        blocks.shrink(161)
    with pytest.raises(ValueError, match="scratch block"):
        BlockCache(0, 16)
    assert blocks.drain() == []
