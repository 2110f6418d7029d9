"""The duplicate finder agrees with a dict, in few bytes a row."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from producer.duplicates import DuplicateFinder


def expected(ids: list[str]) -> list[tuple[int, int]]:
    first: dict[str, int] = {}
    pairs = [(position, first.setdefault(name, position)) for position, name in enumerate(ids)]
    return [pair for pair in pairs if pair[0] != pair[1]]


@given(st.lists(st.text(max_size=2)), st.integers(1, 5))
def test_repeats_are_those_that_a_dict_finds(ids: list[str], limit: int) -> None:
    finder = DuplicateFinder()
    for position, name in enumerate(ids):
        finder.add([name], [position])
    assert finder.repeats(limit) == (expected(ids)[:limit], len(expected(ids)))


@given(st.lists(st.sampled_from("abcdef")))
def test_equal_hashes_are_candidates(ids: list[str]) -> None:
    finder = DuplicateFinder(hash_id=lambda name: -7)
    for position, name in enumerate(ids):
        finder.add([name], [position])
    assert finder.repeats(100)[1] == max(0, len(ids) - 1)


def test_a_row_costs_little_more_than_12_bytes() -> None:
    rows = 100_000
    tracemalloc.start()
    try:
        finder = DuplicateFinder()
        for position in range(rows):
            finder.add([f"row-{position}"], [position])
        size = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert finder.repeats(1) == ([], 0)
    assert size / rows < 15


def test_lines_may_be_more_than_32_bits_count() -> None:
    finder = DuplicateFinder()
    for name, position in (("a", 1), ("b", 2**32 - 1), ("a", 2**32), ("b", 2**33)):
        finder.add([name], [position])
    assert finder.repeats(5) == ([(2**32, 1), (2**33, 2**32 - 1)], 2)
