"""Rows in slots of a few sizes: who lies where, and what has to be copied."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from cache_work import CacheMachine, garbage
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test

from worker.engine.slot_cache import Copy, Resize, Slot, SlotCache

PLENTY = 10**6


def cache(budget: int = PLENTY, max_length: int = 1024, rows: dict[int, int] | None = None) -> SlotCache:
    """A cache that holds ``rows``, with nothing left to be carried out."""
    made = SlotCache(budget, max_length)
    for key, positions in (rows or {}).items():
        assert made.reserve(key, positions)
    made.drain()
    return made


def resizes(slots: SlotCache) -> list[Resize]:
    return [operation for operation in slots.drain() if isinstance(operation, Resize)]


class SlotDevice:
    """The arenas as lists of slots, which are lists of positions."""

    def __init__(self, slots: SlotCache, sizes: list[int]) -> None:
        self.cache = slots
        self.sizes = sizes
        self.arenas: dict[int, list[list[int]]] = {}
        self.budget = slots.budget

    @property
    def memory(self) -> int:
        return sum(size * len(arena) for size, arena in self.arenas.items())

    def run(self) -> None:
        rows: dict[int, Slot] = {}
        for operation in self.cache.drain():
            if isinstance(operation, Resize):
                self._resize(operation)
            else:
                self._copy(operation)
        for size in self.cache.sizes:
            for index, key in enumerate(self.cache.rows(size)):
                assert self.cache.slot_of(key) == Slot(size, index)
                rows[key] = Slot(size, index)
        assert self.memory <= max(self.cache.budget, sum(slot.size for slot in rows.values()))
        self.budget = self.cache.budget

    def cell(self, key: int, position: int) -> tuple[list[int], int]:
        slot = self.cache.slot_of(key)
        return self.arenas[slot.size][slot.index], position

    def has_room(self, rows: Iterable[int], key: int, positions: int, donor: int | None) -> bool:
        own = self.cache.slot_of(key).size if self.cache.held(key) else 0
        taken = sum(self.cache.slot_of(row).size for row in rows)
        fitting = [size for size in self.sizes if size >= positions]
        return positions <= own or (bool(fitting) and taken + fitting[0] <= self.cache.budget)

    def _resize(self, operation: Resize) -> None:
        old, before = self.arenas.get(operation.size, []), self.memory
        new = [garbage(operation.size) for _ in range(operation.slots - len(old))]
        self.arenas[operation.size] = old[: operation.slots] + new
        assert self.memory <= max(self.budget, before)

    def _copy(self, operation: Copy) -> None:
        source, target = operation.source, operation.target
        assert source != target
        assert 0 < operation.positions <= min(source.size, target.size)
        content = self.arenas[source.size][source.index]
        self.arenas[target.size][target.index][: operation.positions] = content[: operation.positions]


class SlotMachine(CacheMachine):
    device: SlotDevice

    @initialize(
        budget=st.integers(0, 200),
        max_length=st.integers(1, 45),
        smallest=st.integers(1, 9),
        first_slots=st.integers(1, 5),
    )
    def start(self, budget: int, max_length: int, smallest: int, first_slots: int) -> None:
        self.slots = SlotCache(budget, max_length, smallest=smallest, first_slots=first_slots)
        longest = -(-max_length // smallest) * smallest
        doubled = [smallest * 2**k for k in range(7) if smallest * 2**k < longest]
        self.device = SlotDevice(self.slots, [*doubled, longest])

    def check_nothing_leaked(self) -> None:
        for size in self.device.sizes:
            keys = [next(self.keys) for _ in range(self.cache.budget // size)]
            assert all(self.cache.reserve(key, size) for key in keys)
            assert not self.cache.reserve(next(self.keys), size)
            self.device.run()
            for key in keys:
                self.cache.free(key)


def test_each_row_reads_what_was_written_for_it_whatever_happens_to_the_others() -> None:
    run_state_machine_as_test(SlotMachine, settings=settings(max_examples=120, stateful_step_count=40, deadline=None))


def test_sizes_double_up_to_the_longest_row() -> None:
    slots = cache(max_length=1100)
    sizes = []
    for key, positions in enumerate([1, 64, 65, 128, 129, 1024, 1025, 1100]):
        assert slots.reserve(key, positions)
        sizes.append(slots.slot_of(key).size)
    assert sizes == [64, 64, 128, 128, 256, 1024, 1152, 1152]
    assert slots.sizes == [64, 128, 256, 1024, 1152]
    assert not slots.reserve(99, 1153)


def test_a_row_that_grows_within_its_slot_costs_nothing() -> None:
    slots = cache(rows={7: 10})
    assert slots.reserve(7, 64)
    assert slots.held(7) == 64
    assert slots.drain() == []


def test_a_row_that_outgrows_its_slot_is_copied_to_the_next() -> None:
    slots = cache(rows={7: 50})
    assert slots.reserve(7, 65)
    assert slots.drain() == [Resize(128, 4), Copy(Slot(64, 0), Slot(128, 0), 50)]
    assert slots.slot_of(7) == Slot(128, 0)


def test_reserving_less_than_a_row_holds_takes_nothing_from_it() -> None:
    slots = cache(rows={7: 50})
    assert slots.reserve(7, 10)
    assert slots.held(7) == 50


def test_the_last_row_fills_the_gap_of_one_that_ended() -> None:
    slots = cache(rows={1: 10, 2: 20, 3: 30})
    slots.free(1)
    assert slots.drain() == [Copy(Slot(64, 2), Slot(64, 0), 30)]
    assert slots.rows(64) == [3, 2]


def test_a_row_in_the_place_of_one_that_ended_costs_no_copy() -> None:
    slots = cache(rows={1: 10, 2: 20, 3: 30})
    slots.free(1)
    assert slots.reserve(4, 40)
    assert slots.drain() == []
    assert slots.rows(64) == [4, 2, 3]


def test_no_row_moves_when_another_is_freed_until_the_operations_are_taken() -> None:
    slots = cache(rows={1: 10, 2: 20, 3: 30})
    slots.free(1)
    assert slots.slot_of(3) == Slot(64, 2)
    assert slots.rows(64) == [2, 3]


def test_rows_that_end_together_move_each_other_row_once_at_most() -> None:
    slots = cache(rows=dict.fromkeys(range(16), 10))
    for key in (0, 2, 4, 6, 8, 10, 15):
        slots.free(key)
    moved = [operation.source.index for operation in slots.drain() if isinstance(operation, Copy)]
    assert sorted(moved) == [9, 11, 12, 13, 14]


def test_a_fork_gets_a_slot_and_a_copy_of_its_own() -> None:
    slots = cache(rows={1: 100})
    assert slots.fork(2, 1, 40) == 40
    assert slots.drain() == [Resize(64, 4), Copy(Slot(128, 0), Slot(64, 0), 40)]
    slots.free(1)
    assert slots.held(2) == 40


def test_an_arena_doubles_so_that_a_hundred_rows_cost_few_resizes() -> None:
    slots = cache()
    steps = []
    for key in range(100):
        assert slots.reserve(key, 10)
        steps += resizes(slots)
    assert steps == [Resize(64, count) for count in (4, 8, 16, 32, 64, 128)]


def test_rows_admitted_together_cost_one_resize() -> None:
    slots = cache()
    for key in range(30):
        assert slots.reserve(key, 10)
    assert slots.drain() == [Resize(64, 32)]


def test_an_arena_keeps_its_slots_for_the_rows_of_the_next_round() -> None:
    slots = cache(rows=dict.fromkeys(range(32), 10))
    for key in range(32):
        slots.free(key)
    assert slots.drain() == []
    for key in range(32):
        assert slots.reserve(key, 10)
    assert slots.drain() == []


def test_a_row_that_comes_and_goes_alone_costs_no_resizes() -> None:
    slots = cache(rows={1: 10})
    for _ in range(5):
        slots.free(1)
        assert slots.drain() == []
        assert slots.reserve(1, 10)
        assert slots.drain() == []


def test_unused_slots_of_another_class_make_room_half_of_them_at_a_time() -> None:
    slots = cache(budget=32 * 64, rows=dict.fromkeys(range(17), 10))
    for key in range(5):
        slots.free(key)
    slots.drain()
    assert slots.reserve(100, 128)
    assert slots.drain() == [Resize(64, 22), Resize(128, 4)]
    for key in (101, 102, 103):
        assert slots.reserve(key, 128)
    assert resizes(slots) == []


def test_slots_are_given_up_after_the_rows_in_them_have_moved() -> None:
    slots = cache(budget=8 * 64, rows=dict.fromkeys(range(8), 10))
    slots.free(0)
    slots.free(1)
    assert slots.reserve(100, 128)
    assert slots.drain() == [
        Copy(Slot(64, 6), Slot(64, 0), 10),
        Copy(Slot(64, 7), Slot(64, 1), 10),
        Resize(64, 6),
        Resize(128, 1),
    ]


def test_an_arena_grows_by_what_the_budget_leaves() -> None:
    slots = cache(budget=7 * 64, rows=dict.fromkeys(range(4), 10))
    assert slots.reserve(4, 10)
    assert slots.drain() == [Resize(64, 7)]
    assert slots.reserve(5, 10)
    assert slots.reserve(6, 10)
    assert not slots.reserve(7, 10)
    assert slots.used_ratio == 1
    assert slots.drain() == []


def test_a_row_fits_only_if_its_present_slot_does_as_well_when_it_grows() -> None:
    slots = cache(budget=64 + 128)
    assert slots.fits(128)
    assert not slots.fits(129)
    assert slots.reserve(1, 64)
    assert slots.reserve(1, 128)
    assert cache(budget=128).fits(64)
    assert not cache(budget=128).fits(128)
    assert not cache(budget=63).fits(1)
    assert not cache(max_length=64).fits(65)


def test_a_smaller_budget_takes_unused_slots_at_once_and_the_others_when_they_are_freed() -> None:
    slots = cache(rows=dict.fromkeys(range(5), 10))
    slots.shrink(3 * 64)
    assert slots.budget == 3 * 64
    assert slots.drain() == [Resize(64, 5)]
    assert slots.used_ratio == 1
    slots.free(0)
    slots.free(1)
    assert not slots.reserve(9, 10)
    assert slots.reserve(2, 64)
    slots.free(2)
    assert slots.reserve(9, 10)
    assert [type(operation) for operation in slots.drain()] == [Copy, Copy, Resize]
    assert sorted(slots.rows(64)) == [3, 4, 9]


def test_calls_that_make_no_sense_are_errors() -> None:
    slots = cache(rows={1: 10, 2: 10})
    with pytest.raises(KeyError):
        slots.free(3)
    with pytest.raises(KeyError):
        slots.fork(4, 3, 1)
    with pytest.raises(KeyError):
        slots.slot_of(3)
    with pytest.raises(ValueError, match="in the cache already"):
        slots.fork(2, 1, 5)
    with pytest.raises(ValueError, match="fewer than 11"):
        slots.fork(3, 1, 11)
    with pytest.raises(ValueError, match="at least one position"):
        slots.fork(3, 1, 0)
    with pytest.raises(ValueError, match="at least one position"):
        slots.reserve(3, 0)
    with pytest.raises(ValueError, match="cannot shrink"):
        slots.shrink(PLENTY + 1)
    with pytest.raises(ValueError, match="cannot shrink"):
        slots.shrink(-1)
    with pytest.raises(ValueError, match="at least 1"):
        SlotCache(100, 0)
    assert slots.drain() == []
