"""Which waiting rows make up the next padded batch. Pure Python: no torch, no threads, no clock."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from heapq import merge
from itertools import chain, groupby, islice, zip_longest
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from worker.engine.waiting import Waiting

RowT = TypeVar("RowT", bound=Waiting)


class PaddedScheduler(Generic[RowT]):
    """Forms batches of rows of similar length, shared fairly between groups.

    Of every batch one row is the *anchor*: the row that waited longest in the group that was anchor longest
    ago, so that no row and no group waits for ever, whatever the others look like. The other rows are those
    nearest to it in length; each group is offered an equal share of the batch before what is left goes to the
    nearest of all.

    A batch costs ``rows x (longest prompt + longest output)`` positions and stays within
    ``max_batch_tokens``; the anchor is taken even if it alone costs more. Longest prompt and longest output
    together stay within ``max_length``: rows that have ended are still fed to the model until the last one
    ends. ``equal_prompts`` admits only prompts as long as the anchor's, for models that padding would
    disturb.

    Forming a batch costs time for the rows in it, the groups, and the lengths that do not fit, however many
    rows are waiting.
    """

    def __init__(self, max_rows: int, max_batch_tokens: int, *, max_length: int, equal_prompts: bool = False) -> None:
        self.max_rows = max_rows
        self.max_batch_tokens = max_batch_tokens
        self.max_length = max_length
        self.equal_prompts = equal_prompts
        #: By key, in order of arrival; so are the keys themselves, those of rows that were put back negative.
        self._rows: OrderedDict[int, RowT] = OrderedDict()
        self._groups: dict[str, _Group] = {}
        self._arrivals = 0
        self._returns = 0
        self._batches = 0
        #: When each group was anchor last: the number of batches by then.
        self._anchored: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[RowT]:
        return iter(self._rows.values())

    def add(self, row: RowT) -> None:
        self._insert(self._arrivals, row)
        self._arrivals += 1

    def put_back(self, rows: Iterable[RowT]) -> None:
        """Return rows of a batch that was given up; they are the oldest again."""
        for row in reversed([*rows]):
            self._returns += 1
            self._insert(-self._returns, row)
            self._rows.move_to_end(-self._returns, last=False)

    def remove(self, unwanted: Callable[[RowT], bool]) -> list[RowT]:
        """Take out the rows for which ``unwanted`` is true."""
        return self._take([key for key, row in self._rows.items() if unwanted(row)])

    def clear(self) -> list[RowT]:
        """Take out all rows."""
        rows = [*self]
        self._rows.clear()
        self._groups.clear()
        return rows

    def next_batch(self) -> list[RowT]:
        """Take the rows of the next batch, the anchor first; empty only if none are waiting."""
        if not self._rows:
            return []
        anchor = self._anchor()
        batch = _Batch(anchor, _Shape.of(self._rows[anchor]), self.max_rows, self.max_batch_tokens, self.max_length)
        for _, key, shape in self._candidates(batch, self._rows[anchor].group):
            if batch.full:
                break
            batch.offer(key, shape)
        return self._take(batch.keys)

    def _insert(self, key: int, row: RowT) -> None:
        # A group that enters comes before the one that was just anchor, and after all others that wait: neither
        # can a stream of new groups starve an old one, nor the other way round.
        self._anchored.setdefault(row.group, self._batches - 0.5)
        self._rows[key] = row
        self._groups.setdefault(row.group, _Group()).add(key, _Shape.of(row))

    def _take(self, keys: list[int]) -> list[RowT]:
        rows = [self._rows.pop(key) for key in keys]
        for key, row in zip(keys, rows, strict=True):
            group = self._groups[row.group]
            group.discard(key, _Shape.of(row))
            if not group.keys:
                del self._groups[row.group]
        return rows

    def _anchor(self) -> int:
        """The key of the oldest row of the group that was anchor longest ago."""
        # Groups that have no row waiting start anew when they return.
        self._anchored = {name: self._anchored[name] for name in self._groups}
        name = min(self._groups, key=lambda name: (self._anchored[name], self._groups[name].oldest))
        self._batches += 1
        self._anchored[name] = self._batches
        return self._groups[name].oldest

    def _candidates(self, batch: _Batch, own: str) -> Iterator[_Candidate]:
        """The other rows, best first: each group's share, the groups taking turns, and then the rest."""
        others = []
        for name, group in self._groups.items():
            if name != own:
                rows = group.nearest(batch, self.equal_prompts)
                if (first := next(rows, None)) is not None:
                    others.append((first, rows))
        others.sort(key=lambda other: other[0][:2])
        nearest = [self._groups[own].nearest(batch, self.equal_prompts)]
        nearest += [chain([first], rows) for first, rows in others]
        share = -(-self.max_rows // len(nearest))
        turns = zip_longest(*(islice(rows, share) for rows in nearest))
        yield from (candidate for turn in turns for candidate in turn if candidate is not None)
        yield from merge(*nearest)


class _Shape(NamedTuple):
    """The lengths of a row, in the order of their sum. Rows of one shape are alike to a batch."""

    total: int
    prompt: int
    output: int

    @classmethod
    def of(cls, row: Waiting) -> _Shape:
        prompt, output = row.prompt_tokens, row.output_tokens
        return cls(prompt + output, prompt, output)


#: Distance in length from the anchor, key, shape: what is smaller is better.
_Candidate = tuple[int, int, _Shape]


class _Group:
    """The keys of one group's rows, by arrival and by shape."""

    def __init__(self) -> None:
        # Only used for their order; an OrderedDict gives up any key, and finds its first, in constant time.
        self.keys: OrderedDict[int, None] = OrderedDict()
        self._alike: dict[_Shape, OrderedDict[int, None]] = {}
        self._shapes: list[_Shape] = []  # sorted

    @property
    def oldest(self) -> int:
        return next(iter(self.keys))

    def add(self, key: int, shape: _Shape) -> None:
        if shape not in self._alike:
            insort(self._shapes, shape)
            self._alike[shape] = OrderedDict()
        for keys in (self.keys, self._alike[shape]):
            keys[key] = None
            if key < 0:
                keys.move_to_end(key, last=False)

    def discard(self, key: int, shape: _Shape) -> None:
        del self.keys[key], self._alike[shape][key]
        if not self._alike[shape]:
            del self._alike[shape], self._shapes[bisect_left(self._shapes, shape)]

    def nearest(self, batch: _Batch, equal_prompts: bool) -> Iterator[_Candidate]:
        """The rows outwards from the length of the batch's anchor, without those known not to fit."""
        anchor, shapes = batch.anchor, self._shapes
        if equal_prompts:
            shapes = [shape for shape in shapes if shape.prompt == anchor.prompt]
        middle = bisect_left(shapes, anchor.total, key=attrgetter("total"))
        longer, shorter = range(middle, len(shapes)), range(middle - 1, -1, -1)
        return merge(*(self._outwards(batch, (shapes[i] for i in side)) for side in (longer, shorter)))

    def _outwards(self, batch: _Batch, shapes: Iterable[_Shape]) -> Iterator[_Candidate]:
        for total, alike in groupby(shapes, key=attrgetter("total")):
            if not batch.has_room(total):
                return
            distance = abs(total - batch.anchor.total)
            yield from merge(*(self._of_shape(batch, shape, distance) for shape in alike))

    def _of_shape(self, batch: _Batch, shape: _Shape, distance: int) -> Iterator[_Candidate]:
        for key in self._alike[shape]:
            if shape in batch.unfit:
                return
            if key != batch.keys[0]:
                yield distance, key, shape


class _Batch:
    """What is in a batch while it is being filled, by key; the anchor first."""

    def __init__(self, key: int, anchor: _Shape, max_rows: int, max_tokens: int, max_length: int) -> None:
        self.keys, self.anchor = [key], anchor
        #: Shapes that did not fit. A batch only grows, so they never will.
        self.unfit: set[_Shape] = set()
        self._prompt, self._output = anchor.prompt, anchor.output
        self._max_rows, self._max_tokens, self._max_length = max_rows, max_tokens, max_length

    @property
    def full(self) -> bool:
        one_more = (len(self.keys) + 1) * (self._prompt + self._output)
        return len(self.keys) >= self._max_rows or one_more > self._max_tokens

    def has_room(self, length: int) -> bool:
        """Whether one more row would fit if it made the batch ``length`` positions long."""
        too_many = len(self.keys) >= self._max_rows or (len(self.keys) + 1) * length > self._max_tokens
        return not too_many and length <= self._max_length

    def offer(self, key: int, shape: _Shape) -> None:
        """Count a row in, if it fits."""
        prompt, output = max(self._prompt, shape.prompt), max(self._output, shape.output)
        if self.has_room(prompt + output):
            self.keys.append(key)
            self._prompt, self._output = prompt, output
        else:
            self.unfit.add(shape)
