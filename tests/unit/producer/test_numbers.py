"""Numbers as people read them."""

from __future__ import annotations

import pytest

from producer.numbers import compact, counted, duration, rate, share


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min"), (65, "1 min 05 s"), (7_260, "2 h 01 min"), (93_600, "1 d 02 h")],
)
def test_durations_have_two_units(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_numbers_are_short() -> None:
    assert [rate(value) for value in (0, 0.416, 24.13, 1_756.4)] == ["0", "0.42", "24.1", "1,756"]
    shares = [share(part, 10_000) for part in (0, 1, 5_000, 9_999, 10_000)]
    assert shares == ["0.0 %", "< 0.1 %", "50.0 %", "> 99.9 %", "100.0 %"]
    assert [compact(value) for value in (0, 0.5, 50, 2_000, 1_500_000)] == ["0", "0.5", "50", "2k", "1.5M"]


def test_what_is_counted_is_named_by_its_number() -> None:
    assert [counted(number, "row") for number in (0, 1, 1_200)] == ["0 rows", "1 row", "1,200 rows"]
    assert [counted(number, "batch", "batches") for number in (1, 2)] == ["1 batch", "2 batches"]
