"""When a supervised process is started again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.supervisor.restarts import LONGEST_S, RAN_WELL_S, back_off_s, failures_after, gives_up

counts = st.integers(0, 10_000)
chances = st.floats(0, 1)
statuses = st.sampled_from([0, 1, 3, 70, 75, -9, -11])


@given(counts, statuses, chances)
def test_a_wait_is_never_none_and_never_longer_than_a_minute(failures: int, status: int, chance: float) -> None:
    assert 0.5 <= back_off_s(failures, status, chance) <= LONGEST_S


@given(counts, statuses, chances, chances)
def test_one_more_failure_never_makes_it_shorter(failures: int, status: int, chance: float, other: float) -> None:
    longest_before = back_off_s(failures, status, 0.0)
    assert back_off_s(failures + 1, status, chance) >= min(longest_before, LONGEST_S / 2)
    assert back_off_s(failures, status, other) >= longest_before / 2


def test_waits_double() -> None:
    assert [back_off_s(failures, 75, 0.0) for failures in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_what_is_wrong_with_the_command_line_is_tried_once_a_minute() -> None:
    assert back_off_s(1, 2, 0.0) == LONGEST_S


@given(counts, st.floats(0, 1e6))
def test_a_process_that_ran_well_has_not_failed(failures: int, ran_s: float) -> None:
    assert failures_after(failures, ran_s) == (0 if ran_s >= RAN_WELL_S else failures + 1)


@given(st.lists(st.none() | statuses | st.just(2), min_size=1), st.booleans())
def test_only_when_nobody_ever_served_and_all_say_that_people_have_to_act_is_there_nothing_to_wait_for(
    last: list[int | None], ever_registered: bool
) -> None:
    assert gives_up(last, ever_registered) == (set(last) == {2} and not ever_registered)
