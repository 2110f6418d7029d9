"""Which running row has computed the beginning of another's prompt already. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

#: Shared beginnings shorter than this are computed again: that is cheaper than looking for them.
MIN_SHARED = 16

#: Rows that are compared with a new one, of the oldest and of the newest with its beginning. Those of one template
#: all share the same with it, but behind the header of a chat another job's rows may have another one.
_MAX_COMPARED = 4


class Prompted(Protocol):
    #: Positions of the row whose keys and values are in the cache.
    computed: int

    @property
    def key(self) -> int: ...
    @property
    def prompt_ids(self) -> Sequence[int]: ...


RowT = TypeVar("RowT", bound=Prompted)


class Donor(NamedTuple, Generic[RowT]):
    """A running row that begins as a new one does."""

    row: RowT
    #: Tokens that the two prompts have in common, but for the new row's last: its logits have to be computed.
    shared: int

    @property
    def ready(self) -> int:
        """How many of them the donor has computed."""
        return min(self.shared, self.row.computed)


class Donors(Generic[RowT]):
    """The running rows by the beginning of their prompts."""

    def __init__(self) -> None:
        self._alike: dict[tuple[int, ...], dict[int, RowT]] = {}
        self._same: dict[tuple[int, ...], dict[int, RowT]] = {}

    def add(self, row: RowT) -> None:
        for index, name in self._names(row):
            index.setdefault(name, {})[row.key] = row

    def remove(self, row: RowT) -> None:
        for index, name in self._names(row):
            rows = index.get(name, {})
            rows.pop(row.key, None)
            if not rows:
                index.pop(name, None)

    def best(self, row: RowT) -> Donor[RowT] | None:
        """The donor that has, or soon will have, most of what ``row`` begins with; None if that is too little."""
        prompt = row.prompt_ids
        alike = self._alike.get(tuple(prompt[:MIN_SHARED]), {})
        same = self._same.get(tuple(prompt), {}) if alike else {}
        oldest, newest = (islice(rows, _MAX_COMPARED) for rows in (alike.values(), reversed(alike.values())))
        candidates = [*islice(same.values(), 1), *oldest, *newest]
        donors = [Donor(one, min(common(prompt, one.prompt_ids), len(prompt) - 1)) for one in candidates]
        best = max(donors, key=lambda donor: (donor.shared, donor.ready), default=None)
        return best if best is not None and best.shared >= MIN_SHARED else None

    def _names(self, row: RowT) -> list[tuple[dict[tuple[int, ...], dict[int, RowT]], tuple[int, ...]]]:
        prompt = tuple(row.prompt_ids)
        return [(self._alike, prompt[:MIN_SHARED]), (self._same, prompt)] if len(prompt) > MIN_SHARED else []


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two prompts have in common at their beginning."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
