"""Rows in slots of a few sizes, for attention over dense, padded memory.

Slots come in size classes, like those of a slab allocator: 64, 128, 256, ... positions. The slots of a class are one
arena, and its rows lie at indices ``0 .. n - 1`` without gaps, so that attention can run over ``arena[0:n]``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from worker.engine.kv_cache import check_fork, check_positions, check_shrink


@dataclass(frozen=True, slots=True)
class Slot:
    """Place ``index`` in the arena of the class whose slots hold ``size`` positions each."""

    size: int
    index: int


@dataclass(frozen=True, slots=True)
class Resize:
    """The arena of a class has ``slots`` slots from now on; those that it had before keep their contents.

    What is in a new slot is undefined.
    """

    size: int
    slots: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Positions ``[0, positions)`` of ``source`` are to be in ``target`` as well; the two are different slots."""

    source: Slot
    target: Slot
    positions: int


Operation = Resize | Copy


class SlotCache:
    """A `KVCache` whose budget is the arenas' memory: the sum of ``slots x size`` never exceeds it.

    The sizes are ``smallest x 2^k``, the last one being ``max_length`` rounded up to a multiple of ``smallest``. An
    arena begins with ``first_slots`` slots and doubles. Where the budget has no room for that, unused slots of other
    classes are given up, and the arena grows by what there is; until then an arena keeps what it once needed, as rows
    of the next round will need it again, and memory that is new costs more than what is computed in it.

    A place that a row leaves stays a gap until ``drain``, so that a row which replaces one that ended costs no copy.
    Once all that ``drain`` gave has been carried out, the rows lie without gaps on the device, where ``slot_of`` and
    ``rows`` say. ``free`` moves no row; ``reserve``, ``fork`` and ``shrink`` can move any, until the next ``drain``.
    """

    def __init__(self, budget: int, max_length: int, *, smallest: int = 64, first_slots: int = 4) -> None:
        if budget < 0 or min(max_length, smallest, first_slots) < 1:
            raise ValueError("a slot cache needs lengths of at least 1 and a budget that is not negative")
        self._budget = budget
        self._first_slots = first_slots
        self._sizes = _size_classes(max_length, smallest)
        self._arenas = {size: _Arena(size) for size in self._sizes}
        self._rows: dict[int, _Row] = {}
        self._operations: list[Operation] = []

    @property
    def budget(self) -> int:
        return self._budget

    @property
    def used_ratio(self) -> float:
        """The share of the budget that is in slots with a row: unused slots can be given up."""
        used = self._used()
        return min(1.0, used / self._budget) if self._budget else float(used > 0)

    @property
    def sizes(self) -> list[int]:
        """The sizes of the classes that have rows, ascending."""
        return [arena.size for arena in self._arenas.values() if arena.used]

    def reserve(self, key: int, positions: int) -> bool:
        """See `KVCache`. A row stays in its slot, or moves to the smallest one that suffices."""
        check_positions(positions)
        row = self._rows.get(key)
        if row is not None and positions <= row.arena.size:
            row.positions = max(row.positions, positions)
            return True
        arena = self._arena_for(positions)
        if arena is None or not self._make_room(arena):
            return False
        if row is None:
            self._rows[key] = _Row(arena, arena.take(key), positions)
        else:
            self._move(key, row, arena)
            row.positions = positions
        return True

    def fork(self, key: int, donor: int, positions: int) -> int:
        """See `KVCache`. The new row gets a slot of its own and a copy."""
        check_fork(self, key, donor, positions)
        if not self.reserve(key, positions):
            return 0
        # Only now: making room can have moved the donor.
        self._operations.append(Copy(self._rows[donor].slot, self._rows[key].slot, positions))
        return positions

    def free(self, key: int) -> None:
        row = self._rows.pop(key)
        row.arena.leave(row.index)

    def held(self, key: int) -> int:
        row = self._rows.get(key)
        return row.positions if row is not None else 0

    def fits(self, positions: int) -> bool:
        """See `KVCache`. Room for the next smaller slot is counted in: a row that grows is copied out of it."""
        at = bisect_left(self._sizes, positions)
        return at < len(self._sizes) and sum(self._sizes[max(at - 1, 0) : at + 1]) <= self._budget

    def shrink(self, budget: int) -> None:
        """See `KVCache`. Unused slots beyond the new budget are given up at once, others by ``drain`` once freed."""
        check_shrink(self, budget)
        self._budget = budget
        self._give_up(0)

    def slot_of(self, key: int) -> Slot:
        """Where a row lies. Raises KeyError if it is unknown."""
        return self._rows[key].slot

    def rows(self, size: int) -> Sequence[int]:
        """The keys of a class's rows in the order of their slots. Raises KeyError if there is no such class."""
        arena = self._arenas[size]
        gaps = set(arena.gaps)
        return [key for index, key in enumerate(arena.rows) if index not in gaps]

    def drain(self) -> list[Operation]:
        """Take the operations that the device has to carry out, in order, before the next forward pass."""
        for arena in self._arenas.values():
            self._close_gaps(arena)
        self._give_up(0)
        operations, self._operations = self._operations, []
        return operations

    def _used(self) -> int:
        return sum(arena.size * arena.used for arena in self._arenas.values())

    def _free_budget(self) -> int:
        """Positions that arenas may still grow by; negative after ``shrink`` until enough is freed."""
        return self._budget - sum(arena.size * arena.slots for arena in self._arenas.values())

    def _arena_for(self, positions: int) -> _Arena | None:
        at = bisect_left(self._sizes, positions)
        return self._arenas[self._sizes[at]] if at < len(self._sizes) else None

    def _make_room(self, arena: _Arena) -> bool:
        """See to it that ``arena`` has an unused slot; False, with nothing changed, if the budget has none."""
        # All unused slots can be given up, so what counts is what the rows take.
        if self._used() + arena.size > self._budget:
            return False
        if not arena.unused:
            self._give_up(arena.size)
            growth = min(max(arena.slots, self._first_slots), self._free_budget() // arena.size)
            self._resize(arena, arena.slots + growth)
        return True

    def _give_up(self, room: int) -> None:
        """Give up unused slots until the budget has ``room`` positions, or none is unused."""
        for arena in sorted(self._arenas.values(), key=lambda arena: arena.size * arena.unused, reverse=True):
            missing = room - self._free_budget()
            if missing <= 0:
                return
            # Half of what is unused, though less might do: two full classes in turns would else take slots from
            # each other one by one, and each time costs a copy of the arena.
            slots = max(-(-missing // arena.size), -(-arena.unused // 2))
            self._resize(arena, arena.slots - min(arena.unused, slots))

    def _resize(self, arena: _Arena, slots: int) -> None:
        if slots == arena.slots:
            return
        if slots < len(arena.rows):
            self._close_gaps(arena)
        arena.slots = slots
        last = self._operations[-1] if self._operations else None
        if isinstance(last, Resize) and last.size == arena.size:
            self._operations.pop()
        self._operations.append(Resize(arena.size, slots))

    def _move(self, key: int, row: _Row, arena: _Arena) -> None:
        source = row.slot
        row.arena.leave(row.index)
        row.arena, row.index = arena, arena.take(key)
        self._operations.append(Copy(source, row.slot, row.positions))

    def _close_gaps(self, arena: _Arena) -> None:
        """Move the last rows of an arena into the places that rows have left."""
        for key, index in arena.close_gaps():
            row = self._rows[key]
            source, row.index = row.slot, index
            self._operations.append(Copy(source, row.slot, row.positions))


def _size_classes(max_length: int, smallest: int) -> list[int]:
    last = -(-max_length // smallest) * smallest
    sizes = [smallest]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes


@dataclass(slots=True)
class _Arena:
    """The slots of one size class."""

    size: int
    slots: int = 0
    #: Keys in the order of their slots; what stands at the index of a gap means nothing.
    rows: list[int] = field(default_factory=list)
    gaps: list[int] = field(default_factory=list)

    @property
    def used(self) -> int:
        return len(self.rows) - len(self.gaps)

    @property
    def unused(self) -> int:
        return self.slots - self.used

    def take(self, key: int) -> int:
        """The index of an unused slot, which is the row's from now on."""
        if not self.gaps:
            self.rows.append(key)
            return len(self.rows) - 1
        index = self.gaps.pop()
        self.rows[index] = key
        return index

    def leave(self, index: int) -> None:
        self.gaps.append(index)

    def close_gaps(self) -> list[tuple[int, int]]:
        """Let the rows lie at ``0 .. used - 1``; gives the key and the new index of each that moves, once at most."""
        used, gaps = self.used, set(self.gaps)
        targets = sorted(index for index in gaps if index < used)
        beyond = [key for index, key in enumerate(self.rows[used:], used) if index not in gaps]
        moves = [*zip(beyond, targets, strict=True)]
        for key, index in moves:
            self.rows[index] = key
        del self.rows[used:]
        self.gaps.clear()
        return moves


@dataclass(slots=True)
class _Row:
    arena: _Arena
    index: int
    #: Positions reserved, the size of the slot at most.
    positions: int

    @property
    def slot(self) -> Slot:
        return Slot(self.arena.size, self.index)
