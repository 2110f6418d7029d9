"""Which row owns what of the memory for keys and values. Pure Python: the tensors live elsewhere.

A *row* is one sequence of token positions that is being generated, named by an integer key. A cache only keeps the
accounts: it says where each row lies, and collects the operations (grow an arena, copy a slot, copy a block) that
the device has to carry out, **in order and before the next forward pass**, to make it true. What a row holds is
counted in positions, whatever the layers, heads and bytes of one position are.
"""

from __future__ import annotations

from typing import Protocol


class KVCache(Protocol):
    """Room for the keys and values of rows, counted in token positions.

    A call that is refused changes nothing, not even the operations that are waiting for the device.
    """

    @property
    def budget(self) -> int:
        """The most positions that may be taken, used or not."""
        ...

    @property
    def used_ratio(self) -> float:
        """How much of the budget the rows take, 0 to 1."""
        ...

    def reserve(self, key: int, positions: int) -> bool:
        """Make room for positions ``[0, positions)`` of a row, new or known; what it held stays held.

        False if there is no room for that. Raises ValueError if ``positions`` is less than 1.
        """
        ...

    def fork(self, key: int, donor: int, positions: int) -> int:
        """Begin a new row with the first ``positions`` of the donor, which must have been written.

        Gives the positions that the new row holds: ``positions``, or 0 if there is no room, and then the row is
        not known. ``reserve`` extends it; the two rows are independent from here on. Raises KeyError for an
        unknown donor, ValueError if the row is known or the donor holds fewer positions.
        """
        ...

    def free(self, key: int) -> None:
        """Give back all that a row holds. Raises KeyError if it is unknown."""
        ...

    def held(self, key: int) -> int:
        """The positions reserved for a row, 0 if it is unknown."""
        ...

    def fits(self, positions: int) -> bool:
        """Whether a row could grow to that many positions, in whatever steps, if it were alone."""
        ...

    def shrink(self, budget: int) -> None:
        """Set a smaller budget, as after out of memory.

        Rows keep what they hold, even beyond the budget, but new room is refused until enough of them are freed.
        Raises ValueError for a budget that is negative or larger than the present one.
        """
        ...


def check_positions(positions: int) -> None:
    """Raises ValueError for a number of positions that no row can have."""
    if positions < 1:
        raise ValueError(f"a row has at least one position, not {positions}")


def check_fork(cache: KVCache, key: int, donor: int, positions: int) -> None:
    """Raises KeyError or ValueError for what ``KVCache.fork`` cannot do whatever the room."""
    check_positions(positions)
    if cache.held(key):
        raise ValueError(f"row {key} is in the cache already")
    held = cache.held(donor)
    if not held:
        raise KeyError(donor)
    if positions > held:
        raise ValueError(f"row {donor} holds {held} positions, fewer than {positions}")


def check_shrink(cache: KVCache, budget: int) -> None:
    """Raises ValueError unless ``budget`` is one that ``cache`` can shrink to."""
    if not 0 <= budget <= cache.budget:
        raise ValueError(f"a budget of {cache.budget} positions cannot shrink to {budget}")
