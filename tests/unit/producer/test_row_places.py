"""Where rows are is known by their number, in few bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from producer.row_places import RowPlaces

_BLOCKS = st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 2**33), min_size=1) | st.just([3, 4, 5])))


@given(_BLOCKS)
def test_a_row_is_where_it_was_noted(blocks: list[tuple[str, list[int]]]) -> None:
    places, expected = RowPlaces(), []
    for file, lines in blocks:
        numbers = places.add(file, lines)
        assert numbers == range(len(expected), len(expected) + len(lines))
        expected += [(file, line) for line in lines]
    assert [places[number] for number in range(len(expected))] == expected


def test_blocks_that_follow_each_other_are_one_piece() -> None:
    places = RowPlaces()
    for first in range(1, 10_000, 100):
        places.add("a", list(range(first, first + 100)))
    assert places._lines == [range(1, 10_001)]
