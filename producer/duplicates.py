"""Finds ids that occur twice among any number of rows, in 16 bytes a row.

Of each id only a 64-bit hash and the row's position are kept, in buckets chosen by the hash; a bucket is
small enough to be searched for equal hashes with a plain dict. Equal hashes are candidates: two different ids
share one with a probability of about ``rows**2 / 2**65`` over a whole source (3e-8 for a million rows), so
candidates are verified where the source can be read again.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator

_BUCKETS = 256


class DuplicateFinder:
    """Takes ids as they come; says at the end which positions repeat an earlier one.

    ``hash_id`` gives 64 signed bits. Python's own string hash is SipHash with a key of the process, fast and
    not to be predicted by whoever wrote the ids.
    """

    def __init__(self, hash_id: Callable[[str], int] = hash) -> None:
        self._hash = hash_id
        self._hashes = [array("q") for _ in range(_BUCKETS)]
        self._positions = [array("q") for _ in range(_BUCKETS)]

    def add(self, custom_id: str, position: int) -> None:
        """Notes an id. Positions ascend from call to call."""
        value = self._hash(custom_id)
        bucket = value & (_BUCKETS - 1)
        self._hashes[bucket].append(value)
        self._positions[bucket].append(position)

    def repeats(self, limit: int) -> tuple[list[tuple[int, int]], int]:
        """The first ``limit`` candidates as ``(position, first position of that hash)``, and their count."""
        counter = _Counted(self._candidates())
        return heapq.nsmallest(limit, counter), counter.count

    def _candidates(self) -> Iterator[tuple[int, int]]:
        for hashes, positions in zip(self._hashes, self._positions, strict=True):
            if len(set(hashes)) == len(hashes):
                continue
            first: dict[int, int] = {}
            for value, position in zip(hashes, positions, strict=True):
                earlier = first.setdefault(value, position)
                if earlier != position:
                    yield position, earlier


class _Counted:
    """Counts what passes through an iterator."""

    def __init__(self, items: Iterator[tuple[int, int]]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for item in self._items:
            self.count += 1
            yield item
