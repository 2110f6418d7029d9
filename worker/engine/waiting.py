"""Rows that wait for a place in the engine, and whose turn it is. Pure Python: no torch, no threads, no clock."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """A row before it runs: the job that it belongs to, and how many positions it takes at most."""

    @property
    def group(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


class Generating(Waiting, Protocol):
    @property
    def generated(self) -> int: ...


RowT = TypeVar("RowT", bound=Generating)

#: Groups without rows whose share and lengths are remembered: a job's next batch goes on where its last one ended.
MAX_REMEMBERED = 1000

#: How much one ended row moves the expectation of its group.
_EXPECTATION_RATE = 0.1


class WaitingRows(Generic[RowT]):
    """Hands out the group that was served least, and of it the row that is expected to run longest.

    Groups (jobs) share the engine by tokens: ``served`` charges a group. One that enters begins level with the group
    that was served least, and before it, so that it neither waits behind a long backlog nor makes up for its absence.
    After a group that entered, one that did not goes first, so that no stream of new groups keeps it waiting.

    Within a group the longest rows go first, because a long row that starts last runs alone. Rows that
    arrive meanwhile wait for the next round, so that short rows are not passed over for ever. How long a row will run
    is its ``output_tokens`` times the share of it that rows of its group have used.
    """

    def __init__(self) -> None:
        self._active: dict[str, _Group[RowT]] = {}
        self._idle: OrderedDict[str, _Group[RowT]] = OrderedDict()
        self._arrivals = 0
        #: What the group served last had been charged for before.
        self._clock = 0.0
        self._entered_last = False
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RowT]:
        return chain.from_iterable(self._active.values())

    def add(self, row: RowT) -> None:
        self._arrivals += 1
        group = self._active.get(row.group)
        if group is None:
            group = self._enter(row.group, self._level())
            group.entered = True
        group.later.append((self._arrivals, row))
        self._count += 1

    def put_back(self, row: RowT) -> None:
        """Return a row that was popped; it is the first of its group."""
        group = self._active.get(row.group) or self._enter(row.group, self._clock)
        group.first.append(row)
        self._count += 1

    def pop(self) -> RowT | None:
        """The next row; None if none wait."""
        if not self._active:
            return None
        name, group = min(
            self._active.items(), key=lambda item: (item[1].served, item[1].entered == self._entered_last)
        )
        row = group.pop()
        self._count -= 1
        if not group:
            self._retire(name)
        return row

    def served(self, row: RowT) -> None:
        """Charge a row that was admitted to its group."""
        group = self._group(row.group)
        self._clock = max(self._clock, group.served)
        group.served += row.prompt_tokens + self.expected(row)
        self._entered_last, group.entered = group.entered, False

    def ended(self, row: RowT) -> None:
        """Learn from a row that ran to its end how long the rows of its group run."""
        group = self._group(row.group)
        group.used_share += _EXPECTATION_RATE * (row.generated / row.output_tokens - group.used_share)

    def expected(self, row: RowT) -> float:
        """How many tokens a row is expected to generate."""
        return row.output_tokens * self._group(row.group).used_share

    def remove(self, unwanted: Callable[[RowT], bool]) -> list[RowT]:
        """Take out the rows for which ``unwanted`` is true."""
        removed = [row for name in [*self._active] for row in self._active[name].remove(unwanted)]
        self._count -= len(removed)
        for name in [name for name, group in self._active.items() if not group]:
            self._retire(name)
        return removed

    def clear(self) -> list[RowT]:
        """Take out all rows."""
        return self.remove(lambda row: True)

    def _group(self, name: str) -> _Group[RowT]:
        group = self._active.get(name) or self._idle.get(name)
        if group is None:
            group = self._idle[name] = _Group(self._clock)
            self._forget()
        return group

    def _level(self) -> float:
        """What the group that was served least has had; of those that had nothing yet, if there are no others."""
        groups = self._active.values()
        levels = [group.served for group in groups if not group.entered] or [group.served for group in groups]
        return min(levels, default=self._clock)

    def _enter(self, name: str, level: float) -> _Group[RowT]:
        group = self._active[name] = self._group(name)
        del self._idle[name]
        group.served = max(group.served, level)
        return group

    def _retire(self, name: str) -> None:
        self._idle[name] = self._active.pop(name)
        self._idle.move_to_end(name)
        self._forget()

    def _forget(self) -> None:
        while len(self._idle) > MAX_REMEMBERED:
            self._idle.popitem(last=False)


class _Group(Generic[RowT]):
    """The waiting rows of one job."""

    def __init__(self, served: float) -> None:
        #: Tokens that it was charged for.
        self.served = served
        #: Whether none of its rows was admitted since it entered.
        self.entered = False
        #: Of the tokens that its rows might have generated, the share that they did; all, until one has ended.
        self.used_share = 1.0
        #: Rows that were put back, the last one first.
        self.first: list[RowT] = []
        #: The rows of this round, the longest last.
        self.round: list[RowT] = []
        #: Arrival and row, for the next round.
        self.later: list[tuple[int, RowT]] = []

    def __bool__(self) -> bool:
        return bool(self.first or self.round or self.later)

    def __iter__(self) -> Iterator[RowT]:
        return chain(reversed(self.first), reversed(self.round), (row for _, row in self.later))

    def pop(self) -> RowT:
        if self.first:
            return self.first.pop()
        if not self.round:
            # Equal rows in order of arrival: the samples of a prompt follow each other, and can share its prefill.
            self.later.sort(key=lambda entry: (entry[1].output_tokens, entry[1].prompt_tokens, -entry[0]))
            self.round, self.later = [row for _, row in self.later], []
        return self.round.pop()

    def remove(self, unwanted: Callable[[RowT], bool]) -> list[RowT]:
        removed = [row for row in self if unwanted(row)]
        if removed:
            gone = {id(row) for row in removed}
            self.first = [row for row in self.first if id(row) not in gone]
            self.round = [row for row in self.round if id(row) not in gone]
            self.later = [entry for entry in self.later if id(entry[1]) not in gone]
        return removed
