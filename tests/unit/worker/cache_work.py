"""Caches of keys and values against a memory that is simulated in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import count
from typing import Protocol

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.engine.kv_cache import KVCache

#: A cache that shrinks again and again soon has room for nothing, and nothing to show.
MAX_SHRINKS = 2

_garbage = count(-1, -1)


def garbage(length: int) -> list[int]:
    """What is in memory that nobody has written to: each number is found nowhere else."""
    return [next(_garbage) for _ in range(length)]


class Device(Protocol):
    """Memory that follows the operations of its cache to the letter."""

    @property
    def cache(self) -> KVCache: ...

    def run(self) -> None:
        """Carry out what the cache asks for; what must be true before a forward pass is true after it."""
        ...

    def cell(self, key: int, position: int) -> tuple[list[int], int]:
        """The list, and the index in it, where a position of a row lies."""
        ...

    def has_room(self, rows: Iterable[int], key: int, positions: int, donor: int | None) -> bool:
        """Whether the budget lets a row have that many positions, reckoned from what ``rows``, all there are, hold."""
        ...


class CacheMachine(RuleBasedStateMachine):
    """Whatever is reserved, forked, freed and shrunk in whatever order, each row reads what was written for it."""

    device: Device

    def __init__(self) -> None:
        super().__init__()
        #: What each row must read: a value of its own for each position that it, or its donor, has written.
        self.rows: dict[int, list[int]] = {}
        self.positions: dict[int, int] = {}
        self.keys, self.values = count(), count()
        self.shrinks = 0

    @property
    def cache(self) -> KVCache:
        return self.device.cache

    @rule(positions=st.integers(1, 40))
    def reserve_a_new_row(self, positions: int) -> None:
        self.reserve(next(self.keys), positions)

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0), more=st.integers(-5, 20))
    def reserve_more(self, which: int, more: int) -> None:
        key = self.pick(which)
        self.reserve(key, max(1, self.positions[key] + more))

    @precondition(lambda self: any(self.rows.values()))
    @rule(which=st.integers(0), share=st.integers(0), more=st.integers(0, 10))
    def fork(self, which: int, share: int, more: int) -> None:
        written = [key for key, values in self.rows.items() if values]
        donor, key = written[which % len(written)], next(self.keys)
        positions = 1 + share % len(self.rows[donor])
        room = self.device.has_room(self.rows, key, positions, donor)
        forked = self.unless_refused(lambda: self.cache.fork(key, donor, positions))
        assert forked == (positions if room else 0)
        if forked:
            self.rows[key], self.positions[key] = self.rows[donor][:positions], positions
            self.reserve(key, positions + more)

    @precondition(lambda self: self.rows)
    @rule(which=st.integers(0))
    def free(self, which: int) -> None:
        key = self.pick(which)
        self.cache.free(key)
        del self.rows[key], self.positions[key]

    @precondition(lambda self: self.rows)
    @rule(which=st.lists(st.integers(0), min_size=1, max_size=3), positions=st.integers(1, 40))
    def replace(self, which: list[int], positions: int) -> None:
        """Rows end and another enters before the device runs: their room is taken while it is still a gap."""
        for each in which[: len(self.rows)]:
            self.free(each)
        self.reserve(next(self.keys), positions)

    @precondition(lambda self: len(self.rows) > 3)
    @rule()
    def free_all_but_one(self) -> None:
        while len(self.rows) > 1:
            self.free(0)

    @precondition(lambda self: self.shrinks < MAX_SHRINKS)
    @rule(part=st.floats(0.3, 1))
    def shrink(self, part: float) -> None:
        self.shrinks += 1
        self.device.run()
        self.cache.shrink(int(self.cache.budget * part))

    @rule()
    def forward(self) -> None:
        """Run what is pending, and write what is reserved and not yet written."""
        self.device.run()
        self.check_contents()
        for key, values in self.rows.items():
            for position in range(len(values), self.positions[key]):
                values.append(next(self.values))
                cells, index = self.device.cell(key, position)
                cells[index] = values[-1]
        self.check_contents()

    @invariant()
    def what_is_held_is_what_was_reserved(self) -> None:
        if hasattr(self, "device"):
            assert {key: self.cache.held(key) for key in self.rows} == self.positions
            assert 0 <= self.cache.used_ratio <= 1
            assert (self.cache.used_ratio > 0) == bool(self.rows)

    def teardown(self) -> None:
        if hasattr(self, "device"):
            self.forward()
            for key in self.rows:
                self.cache.free(key)
            self.device.run()
            assert self.cache.used_ratio == 0
            self.check_nothing_leaked()

    def check_nothing_leaked(self) -> None:
        raise NotImplementedError

    def check_contents(self) -> None:
        for key, values in self.rows.items():
            cells = [self.device.cell(key, position) for position in range(len(values))]
            assert [cells[index] for cells, index in cells] == values

    def reserve(self, key: int, positions: int) -> None:
        room = self.device.has_room(self.rows, key, positions, None)
        alone = self.cache.fits(positions) and not self.rows.keys() - {key}
        reserved = self.unless_refused(lambda: self.cache.reserve(key, positions))
        assert reserved == room
        assert reserved or not alone
        if reserved:
            self.rows.setdefault(key, [])
            self.positions[key] = max(positions, self.positions.get(key, 0))

    def unless_refused(self, call: Callable[[], int]) -> int:
        """What the call gives. Where it is refused, the cache must be, to its last field, what it was before."""
        before = deepcopy(vars(self.cache))
        result = call()
        assert result or vars(self.cache) == before
        return result

    def pick(self, which: int) -> int:
        return [*self.rows][which % len(self.rows)]
