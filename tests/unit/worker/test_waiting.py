"""Whose turn it is: jobs share by tokens, long rows go first, and none waits for ever."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.waiting import MAX_REMEMBERED, WaitingRows


@dataclass(eq=False)
class Row:
    group: str = "job"
    prompt_tokens: int = 10
    output_tokens: int = 10
    generated: int = 0


rows = st.builds(
    Row, group=st.sampled_from("abc"), prompt_tokens=st.integers(1, 100), output_tokens=st.integers(1, 100)
)
lengths = st.tuples(st.integers(1, 9), st.integers(1, 9))


def waiting(*submitted: Row) -> WaitingRows[Row]:
    made: WaitingRows[Row] = WaitingRows()
    for row in submitted:
        made.add(row)
    return made


def admit(made: WaitingRows[Row], most: int = 10**6) -> list[Row]:
    """Take rows in their order and charge their groups, until none wait."""
    admitted: list[Row] = []
    while len(admitted) < most and (row := made.pop()) is not None:
        made.served(row)
        admitted.append(row)
    return admitted


def end(made: WaitingRows[Row], row: Row, used: float) -> None:
    row.generated = round(row.output_tokens * used)
    made.ended(row)


def tokens(row: Row) -> int:
    return row.prompt_tokens + row.output_tokens


@settings(deadline=None, max_examples=100)
@given(st.lists(st.one_of(rows, st.sampled_from(["pop", "serve", "put back", "remove"])), max_size=80))
def test_every_row_is_handed_out_once_unless_it_is_put_back_or_removed(script: list[Row | str]) -> None:
    made, inside, out = waiting(), set[Row](), list[Row]()
    for act in script:
        if isinstance(act, Row):
            made.add(act)
            inside.add(act)
        elif act == "put back" and out:
            made.put_back(out[-1])
            inside.add(out.pop())
        elif act == "remove":
            removed = made.remove(lambda row: row.prompt_tokens % 3 == 0)
            assert {*removed} == {row for row in inside if row.prompt_tokens % 3 == 0}
            assert len(removed) == len({*removed})
            inside -= {*removed}
        elif act in ("pop", "serve"):
            row = made.pop()
            assert (row is None) == (not inside)
            if row is not None:
                inside.remove(row)
                out.append(row)
                if act == "serve":
                    made.served(row)
        assert len(made) == len(inside)
        assert Counter(made) == Counter(inside)
    assert {*admit(made)} == inside
    assert (made.pop(), len(made), [*made]) == (None, 0, [])


def test_of_a_group_the_row_that_may_run_longest_goes_first_and_equal_ones_by_arrival() -> None:
    submitted = [Row(output_tokens=5), Row(), Row(output_tokens=30), Row(prompt_tokens=11), Row(), Row(output_tokens=5)]

    order = admit(waiting(*submitted))

    assert order == [submitted[at] for at in (2, 3, 1, 4, 0, 5)]


@settings(deadline=None, max_examples=100)
@given(st.lists(lengths, min_size=1, max_size=12), st.lists(lengths, min_size=40, max_size=120))
def test_no_row_waits_for_more_than_two_rounds(first: list[tuple[int, int]], later: list[tuple[int, int]]) -> None:
    """As many rows wait at any time; however long those are that arrive, a row's turn comes."""
    arrived = {Row(prompt_tokens=each[0], output_tokens=each[1]): 0 for each in first}
    made = waiting(*arrived)
    for turn, each in enumerate(later, 1):
        row = made.pop()
        assert row is not None
        assert turn - arrived.pop(row) <= 2 * len(first)
        arrived[new := Row(prompt_tokens=each[0], output_tokens=each[1])] = turn
        made.add(new)
    assert all(len(later) - turn < 2 * len(first) for turn in arrived.values())


def test_within_a_round_the_longest_go_first_though_longer_ones_arrive() -> None:
    made = waiting(*(Row(output_tokens=n) for n in (3, 9, 6)))
    order = []
    for _ in range(6):
        order.append(made.pop())
        made.add(Row(output_tokens=100 - len(order)))

    assert [row.output_tokens for row in order if row] == [9, 6, 3, 99, 98, 97]


def test_rows_put_back_are_the_first_of_their_group_the_last_one_first() -> None:
    made = waiting(*(Row(output_tokens=n) for n in range(1, 7)))
    taken = admit(made, 3)
    for row in reversed(taken):
        made.put_back(row)

    assert [row.output_tokens for row in admit(made)] == [6, 5, 4, 3, 2, 1]


@settings(deadline=None, max_examples=100)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(lengths, min_size=30, max_size=30), min_size=2),
    st.integers(0, 20),
)
def test_groups_that_wait_have_had_as_many_tokens_to_within_a_row(
    jobs: dict[str, list[tuple[int, int]]], put_back: int
) -> None:
    made, had = waiting(), Counter[str]()
    for group, sizes in jobs.items():
        for prompt, output in sizes:
            made.add(Row(group, prompt, output))
    for turn in count():
        row = made.pop()
        assert row is not None
        if turn == put_back:
            # A row that found no room costs nothing, and loses nothing.
            made.put_back(row)
            row = made.pop()
            assert row is not None
        made.served(row)
        had[row.group] += tokens(row)
        if len({row.group for row in made}) < len(jobs):
            break
        assert max(had[group] for group in jobs) - min(had[group] for group in jobs) <= 18


@pytest.mark.parametrize("served", [3, 8, 500])
def test_a_new_job_is_next_behind_thousands_of_rows_of_others(served: int) -> None:
    made = waiting(*(Row("large", 5 + i % 7) for i in range(3000)), *(Row("larger", 2 + i % 90) for i in range(3000)))
    admit(made, served)
    for _ in range(10):
        made.add(Row("small"))

    order = groups_of(admit(made, 60))

    assert order[0] == "small"
    assert order.count("small") == 10


def test_several_new_jobs_are_all_served_before_the_backlog_has_two_more_rows() -> None:
    made = waiting(*(Row("large") for _ in range(1000)))
    admit(made, 100)
    for i in range(9):
        made.add(Row(f"small-{i}"))

    order = groups_of(admit(made, 10))

    assert order.count("large") <= 1


@pytest.mark.parametrize("size", [1, 10, 1000])
def test_a_stream_of_new_jobs_does_not_starve_an_old_one(size: int) -> None:
    made = waiting(*(Row("old") for _ in range(100)))
    admit(made, 5)
    order, waited = [], 0
    for i in range(60):
        made.add(Row(f"new-{i}", size, size))
        order += groups_of(admit(made, 1))
        waited = 0 if order[-1] == "old" else waited + 1
        assert waited <= len({row.group for row in made})

    assert order[0] == "new-0"


def test_new_jobs_are_served_in_their_order_though_no_other_is_there() -> None:
    made = waiting(*(Row("old") for _ in range(9)))
    admit(made, 8)
    made.add(Row("first"))
    admit(made, 1)
    order = []
    for i in range(9):
        made.add(Row(f"new-{i}"))
        made.add(Row(f"also-{i}"))
        order += groups_of(admit(made, 1))

    assert order[:5] == ["old", "new-0", "also-0", "new-1", "also-1"]


def test_a_job_does_not_make_up_for_the_time_that_it_was_away() -> None:
    made = waiting(Row("away"), *(Row("there") for _ in range(1000)))
    admit(made, 500)
    for _ in range(100):
        made.add(Row("away"))

    assert 9 <= groups_of(admit(made, 20)).count("away") <= 11


def test_a_job_that_begins_while_no_other_has_rows_does_not_catch_up_with_those_that_had() -> None:
    made = waiting(*(Row("before") for _ in range(300)))
    admit(made)
    for group in ("new", "before"):
        for _ in range(100):
            made.add(Row(group))

    assert 9 <= groups_of(admit(made, 20)).count("before") <= 11


def test_a_job_that_comes_back_has_not_been_forgiven_what_it_had() -> None:
    made = waiting(Row("greedy", 1000), *(Row("modest") for _ in range(200)))
    admit(made, 3)
    for _ in range(9):
        made.add(Row("greedy"))

    assert "greedy" not in groups_of(admit(made, 40))


def test_what_a_row_will_use_is_learned_from_those_that_ended() -> None:
    made = waiting()
    asked = Row(output_tokens=200)
    assert made.expected(asked) == 200
    for _ in range(100):
        end(made, Row(output_tokens=50), 0.1)

    assert made.expected(asked) == pytest.approx(20, rel=0.01)
    assert made.expected(Row("other", output_tokens=200)) == 200


def test_a_job_whose_rows_end_early_has_more_of_them_admitted() -> None:
    made = waiting()
    for _ in range(100):
        end(made, Row("brief", output_tokens=1000), 0.01)
    for group in ("brief", "full"):
        for _ in range(400):
            made.add(Row(group, 10, 190))

    groups = Counter(groups_of(admit(made, 100)))

    # 11.9 tokens for each row of the one, 200 for each of the other.
    assert 14 <= groups["brief"] / groups["full"] <= 18


def test_what_is_remembered_of_jobs_that_have_no_rows_is_bounded() -> None:
    made = waiting()
    for i in range(MAX_REMEMBERED + 500):
        made.add(Row(f"job-{i}"))
        for row in admit(made):
            end(made, row, 0.0)

    expected = [made.expected(Row(f"job-{i}")) for i in (MAX_REMEMBERED + 499, 500, 0)]
    assert expected == [9, 9, 10]
    assert len(made._idle) == MAX_REMEMBERED
    assert len(made._active) == 0


def test_jobs_with_rows_are_never_forgotten() -> None:
    submitted = [Row(f"job-{i}") for i in range(MAX_REMEMBERED + 50)]
    made = waiting(*submitted)
    for i in range(MAX_REMEMBERED + 50):
        made.expected(Row(f"other-{i}"))

    assert {*admit(made)} == {*submitted}


def test_all_rows_can_be_taken_out() -> None:
    submitted = [Row(group) for group in "abab"]
    made = waiting(*submitted)
    made.put_back(first := _popped(made))

    assert Counter(made.clear()) == Counter(submitted)
    assert len(made) == 0
    made.add(first)
    assert admit(made) == [first]


def _popped(made: WaitingRows[Row]) -> Row:
    row = made.pop()
    assert row is not None
    return row


def groups_of(order: Sequence[Row]) -> list[str]:
    return [row.group for row in order]
