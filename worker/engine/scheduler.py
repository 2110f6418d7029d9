"""Which waiting rows make up the next padded batch. Pure Python: no torch, no threads, no clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the scheduler looks at: the job a row belongs to, and how many positions it takes at most."""

    @property
    def group(self) -> str: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def output_tokens(self) -> int: ...


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
    """

    def __init__(self, max_rows: int, max_batch_tokens: int, *, max_length: int, equal_prompts: bool = False) -> None:
        self.max_rows = max_rows
        self.max_batch_tokens = max_batch_tokens
        self.max_length = max_length
        self.equal_prompts = equal_prompts
        self._rows: dict[int, RowT] = {}  # in order of arrival
        self._arrivals = 0
        self._batches = 0
        #: When each group was anchor last: the number of batches by then.
        self._anchored: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[RowT]:
        return iter(self._rows.values())

    def add(self, row: RowT) -> None:
        # A group that enters comes before the one that was just anchor, and after all others that wait: neither
        # can a stream of new groups starve an old one, nor the other way round.
        self._anchored.setdefault(row.group, self._batches - 0.5)
        self._rows[self._arrivals] = row
        self._arrivals += 1

    def put_back(self, rows: Iterable[RowT]) -> None:
        """Return rows of a batch that was given up; they are the oldest again."""
        waiting = [*rows, *self._rows.values()]
        self._rows.clear()
        for row in waiting:
            self.add(row)

    def remove(self, unwanted: Callable[[RowT], bool]) -> list[RowT]:
        """Take out the rows for which ``unwanted`` is true."""
        keys = [key for key, row in self._rows.items() if unwanted(row)]
        return [self._rows.pop(key) for key in keys]

    def next_batch(self) -> list[RowT]:
        """Take the rows of the next batch, the anchor first; empty only if none are waiting."""
        if not self._rows:
            return []
        anchor = self._anchor()
        batch = _Batch(self._rows[anchor], self.max_rows, self.max_batch_tokens, self.max_length)
        taken = [anchor]
        for key in self._candidates(anchor):
            if batch.full:
                break
            if batch.offer(self._rows[key]):
                taken.append(key)
        return [self._rows.pop(key) for key in taken]

    def _anchor(self) -> int:
        """The key of the oldest row of the group that was anchor longest ago."""
        oldest: dict[str, int] = {}
        for key, row in self._rows.items():
            oldest.setdefault(row.group, key)
        # Groups that have no row waiting start anew when they return.
        self._anchored = {group: self._anchored[group] for group in oldest}
        group = min(oldest, key=lambda name: (self._anchored[name], oldest[name]))
        self._batches += 1
        self._anchored[group] = self._batches
        return oldest[group]

    def _candidates(self, anchor: int) -> Iterator[int]:
        """The other rows, best first: each group's share, the groups taking turns, and then the rest."""
        wanted = self._rows[anchor]
        length = wanted.prompt_tokens + wanted.output_tokens
        keys = (
            key
            for key, row in self._rows.items()
            if key != anchor and (not self.equal_prompts or row.prompt_tokens == wanted.prompt_tokens)
        )

        def distance(key: int) -> tuple[int, int]:
            row = self._rows[key]
            return abs(row.prompt_tokens + row.output_tokens - length), key

        nearest: dict[str, list[int]] = {wanted.group: []}
        for key in sorted(keys, key=distance):
            nearest.setdefault(self._rows[key].group, []).append(key)
        share = -(-self.max_rows // len(nearest))
        turns = zip_longest(*(group[:share] for group in nearest.values()))
        yield from (key for turn in turns for key in turn if key is not None)
        yield from sorted((key for group in nearest.values() for key in group[share:]), key=distance)


class _Batch:
    """The size of a batch while it is being filled."""

    def __init__(self, anchor: Waiting, max_rows: int, max_tokens: int, max_length: int) -> None:
        self._rows, self._prompt, self._output = 1, anchor.prompt_tokens, anchor.output_tokens
        self._max_rows, self._max_tokens, self._max_length = max_rows, max_tokens, max_length

    @property
    def full(self) -> bool:
        one_more = (self._rows + 1) * (self._prompt + self._output)
        return self._rows >= self._max_rows or one_more > self._max_tokens

    def offer(self, row: Waiting) -> bool:
        """Count ``row`` in, if it fits."""
        prompt, output = max(self._prompt, row.prompt_tokens), max(self._output, row.output_tokens)
        length = prompt + output
        too_many = self._rows >= self._max_rows or (self._rows + 1) * length > self._max_tokens
        if too_many or length > self._max_length:
            return False
        self._rows, self._prompt, self._output = self._rows + 1, prompt, output
        return True
