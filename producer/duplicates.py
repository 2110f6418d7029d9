"""Finds ids that occur twice among any number of rows, in 12 bytes a row (16 beyond the row 2**32).

Of each id only a 64-bit hash and the row's position are kept, and at the end equal hashes are looked for, one share of
the hashes after the other. Equal hashes are candidates: two different ids share one with a probability of about
``rows**2 / 2**65`` over a whole source (3e-8 for a million rows), so candidates are verified where the source can be
read again.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: Hashes that are kept in one piece, and those that are compared at once.
_CHUNK, _SHARE = 1 << 16, 1 << 18


class DuplicateFinder:
    """Takes ids as they come; says at the end which positions repeat an earlier one.

    ``hash_id`` gives 64 signed bits. Python's own string hash is SipHash with a key of the process, fast and
    not to be predicted by whoever wrote the ids.
    """

    def __init__(self, hash_id: Callable[[str], int] = hash) -> None:
        self._hash = hash_id
        self._hashes: list[array[int]] = []
        self._positions: list[array[int]] = []
        self._count = 0

    def add(self, ids: Sequence[str], positions: Sequence[int]) -> None:
        """Notes ids. Positions ascend from id to id, and from call to call."""
        wide = positions[-1] >= 1 << 32
        if not self._hashes or len(self._hashes[-1]) >= _CHUNK or wide > (self._positions[-1].typecode == "Q"):
            self._hashes.append(array("q"))
            self._positions.append(array("Q" if wide else "I"))
        self._hashes[-1].extend(map(self._hash, ids))
        self._positions[-1].extend(positions)
        self._count += len(ids)

    def alike(self, one: str | None, other: str | None) -> bool:
        """Whether these can be the ids that were found to have one hash; None is none."""
        return one is not None and other is not None and self._hash(one) == self._hash(other)

    def repeats(self, limit: int) -> tuple[list[tuple[int, int]], int]:
        """The first ``limit`` candidates as ``(position, first position of that hash)``, and their count."""
        counter = _Counted(self._candidates())
        return heapq.nsmallest(limit, counter), counter.count

    def _candidates(self) -> Iterator[tuple[int, int]]:
        shares = 1
        while shares * _SHARE < self._count:
            shares *= 2
        for share in range(shares):
            chosen = [_of_share(_as_arrow(hashes), share, shares) for hashes in self._hashes]
            if pc.count_distinct(pa.chunked_array(chosen, pa.int64())).as_py() == sum(map(len, chosen)):
                continue
            first: dict[int, int] = {}
            for value, position in self._pairs(share, shares):
                earlier = first.setdefault(value, position)
                if earlier != position:
                    yield position, earlier

    def _pairs(self, share: int, shares: int) -> Iterator[tuple[int, int]]:
        for hashes, positions in zip(self._hashes, self._positions, strict=True):
            for value, position in zip(hashes, positions, strict=True):
                if value & (shares - 1) == share:
                    yield value, position


def _as_arrow(values: array[int]) -> Any:
    return pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(values)])


def _of_share(hashes: Any, share: int, shares: int) -> Any:
    """The hashes whose last bits are ``share``."""
    if shares == 1:
        return hashes
    return hashes.filter(pc.equal(pc.bit_wise_and(hashes, shares - 1), pa.scalar(share)))


class _Counted:
    """Counts what passes through an iterator."""

    def __init__(self, items: Iterator[tuple[int, int]]) -> None:
        self._items = items
        self.count = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for item in self._items:
            self.count += 1
            yield item
