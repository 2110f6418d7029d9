"""Which tokens a step computes: every row gets its own, in order, whatever comes and goes beside it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection
from types import FrameType
from typing import Any

import pytest
from scheduler_work import Row, Steps, in_blocks, in_slots

from worker.engine.prefixes import MIN_SHARED
from worker.engine.scheduler import Chunk


def steps(
    *rows: Row,
    max_rows: int = 4,
    max_step_tokens: int = 100,
    positions: int = 1000,
    grain: int = 4,
    slots: bool = False,
) -> Steps:
    made = Steps((in_slots if slots else in_blocks)(positions, 500, grain), max_rows, max_step_tokens)
    made.add(*rows)
    return made


def prompt(length: int, first: int = 0) -> list[int]:
    """A prompt that begins like no other, unless the other has the same first token."""
    return [*range(first, first + length)]


def brief(chunks: Collection[Chunk[Row]]) -> list[tuple[Row, int, int, bool]]:
    return [(chunk.row, chunk.start, chunk.count, chunk.samples) for chunk in chunks]


def test_rows_that_generate_go_first_and_prompts_take_what_is_left() -> None:
    short, long = Row(prompt(6), 9), Row(prompt(26, 50), 9)
    made = steps(short, max_step_tokens=10)
    made.step()
    made.add(long)

    assert brief(made.step()) == [(short, 6, 1, True), (long, 0, 9, False)]
    assert brief(made.step()) == [(short, 7, 1, True), (long, 9, 9, False)]
    assert brief(made.step()) == [(short, 8, 1, True), (long, 18, 8, True)]
    assert brief(made.step()) == [(short, 9, 1, True), (long, 26, 1, True)]


def test_every_row_gets_a_token_though_the_budget_is_smaller_than_the_rows() -> None:
    rows = [Row([i] * 3, 30) for i in range(4)]
    made = steps(*rows, max_step_tokens=1)
    for _ in range(12):
        made.step()

    assert {chunk.row for chunk in made.step() if chunk.samples} == {*rows}


@pytest.mark.parametrize("slots", [False, True])
def test_a_prompt_is_computed_once_for_all_its_samples(slots: bool) -> None:
    made = steps(*(Row(prompt(50), 2) for _ in range(8)), max_rows=8, slots=slots)
    made.until_all_ended()

    assert made.computed == 50 + 7 + 8
    assert made.scheduler.shared_tokens == 7 * 49


@pytest.mark.parametrize("slots", [False, True])
def test_a_template_is_computed_once_in_however_many_steps(slots: bool) -> None:
    rows = [Row([*prompt(40), 1000 + i, 2000 + i, 3000 + i], 2 + i) for i in range(10)]
    made = steps(*rows, max_rows=10, max_step_tokens=20, slots=slots)
    made.until_all_ended()

    assert made.computed == 40 + 10 * 3 + sum(row.ends_after - 1 for row in rows)
    assert made.scheduler.shared_tokens == 9 * 40


def test_a_row_does_not_wait_for_a_beginning_that_is_cheap_to_compute() -> None:
    made = steps(*(Row([*prompt(MIN_SHARED - 1), 100 + i]) for i in range(3)))

    assert [chunk.start for chunk in made.step()] == [0, 0, 0]


@pytest.mark.parametrize("length", [20, 200])
def test_rows_of_one_token_do_not_wait_for_each_other(length: int) -> None:
    rows = [Row([*prompt(length), 1000 + i], 1, output_tokens=1) for i in range(64)]
    made = steps(*rows, max_rows=16, max_step_tokens=16 * 201, positions=16 * 204)
    made.until_all_ended()

    assert made.steps == 4


def test_others_enter_while_rows_wait_for_their_common_beginning() -> None:
    alike = [Row(prompt(30), 5, output_tokens=9) for _ in range(3)]
    other = Row(prompt(30, 500), output_tokens=5)
    made = steps(*alike, other)

    assert [chunk.row for chunk in made.step()] == [alike[0], other]
    assert [chunk.row for chunk in made.step()] == alike


def test_the_row_that_entered_last_makes_room_and_keeps_its_tokens() -> None:
    first, last = Row(prompt(7), 9), Row(prompt(6, 50), 9)
    made = steps(first, last, positions=16)
    for _ in range(2):
        made.step()
    assert first.generated == last.generated == 2

    assert brief(made.step()) == [(first, 8, 1, True)]
    assert (made.scheduler.preempted, last.computed, last.generated) == (1, 0, 2)
    made.until_all_ended()
    assert made.ended == [first, last]
    assert made.computed == first.most_positions + last.most_positions + 7


def test_a_row_that_waits_for_room_is_not_overtaken() -> None:
    large, small = Row(prompt(60), output_tokens=20), Row(prompt(3, 90), output_tokens=10)
    made = steps(Row(prompt(50, 200), 3, 30), large, small, positions=64)

    assert len(made.step()) == 1
    made.until_all_ended()
    assert made.ended[1:] == [large, small]


def test_a_row_that_outgrows_the_whole_cache_is_unfit_and_no_other_is() -> None:
    rows = [Row(prompt(5), 6), Row(prompt(7, 50), 30), Row(prompt(17, 90), 1), Row(prompt(10, 130), 7)]
    made = steps(*rows, positions=16)
    made.until_all_ended()

    assert {*made.unfit} == {*rows[1:3]}
    assert rows[1].length == 17


def test_rows_are_put_back_in_the_order_of_admission_but_the_suspects_first() -> None:
    rows = [Row([i] * 3, 30, output_tokens=90 - i) for i in range(6)]
    made = steps(*rows, max_rows=6)
    made.step()
    made.scheduler.restart({rows[2].key, rows[4].key})
    made.scheduler.max_rows = 3

    assert [chunk.row for chunk in made.step()] == [rows[2], rows[4], rows[0]]
    assert [*made.scheduler][3:] == [rows[1], rows[3], rows[5]]


@pytest.mark.parametrize("slots", [False, True])
def test_a_donor_that_leaves_before_the_device_copied_from_it_has_given_all_the_same(slots: bool) -> None:
    donor, heir = Row(prompt(30), 30), Row(prompt(30), 3)
    made = steps(donor, slots=slots)
    made.step()
    made.add(heir)
    chunks = made.scheduler.next_step()
    assert brief(chunks) == [(donor, 30, 1, True), (heir, 29, 1, True)]

    made.scheduler.remove(lambda row: row is donor)
    made.device.run()
    made.compute([chunk for chunk in chunks if chunk.row is heir])
    made.until_all_ended()

    assert made.ended == [heir]


def test_a_job_is_served_at_once_behind_thousands_of_rows_of_another() -> None:
    made = steps(*(Row([i % 9] * 5, 1 + i % 7, group="large") for i in range(3000)), max_rows=4)
    for _ in range(50):
        made.step()
    small = [Row(prompt(12), 3, group="small") for _ in range(10)]
    made.add(*small)
    while len(made.ended) % 4 == 0:
        made.step()
    arrived = made.steps

    while small[0] in made.scheduler and not small[0].generated:
        made.step()

    assert made.steps - arrived <= 1


def test_jobs_share_the_slots_by_tokens() -> None:
    made = steps(max_rows=3)
    made.add(*(Row([1], 4, 4, "short") for _ in range(2000)), *(Row([2], 40, 40, "long") for _ in range(200)))
    for _ in range(1000):
        made.step()
    generated = Counter[str]()
    for row in [*made.ended, *made.running]:
        generated[row.group] += row.length

    assert 0.9 < generated["short"] / generated["long"] < 1.1


def test_a_job_does_not_pay_again_for_a_row_that_had_to_make_room() -> None:
    admitted = []
    for restarts in (0, 9):
        made = steps(Row([1] * 9, 30, 90, "again"), Row([2] * 9, 30, 60, "again"), max_rows=2)
        made.step()
        for _ in range(restarts):
            made.scheduler.restart(())
            made.step()
        for group in ("other", "again"):
            made.add(*(Row([3] * 9, 5, 50, group) for _ in range(9)))
        made.scheduler.max_rows = 8
        made.step()
        admitted.append([row.group for row in made.running[2:]])

    assert admitted[0] == admitted[1]
    assert {*admitted[0]} == {"other", "again"}


def test_tokens_shared_by_a_row_that_begins_again_count_once() -> None:
    made = steps(Row(prompt(30), 9), Row(prompt(30), 9))
    for _ in range(3):
        made.step()
        made.step()
        made.scheduler.put_back(made.running[1])
    made.until_all_ended()

    assert made.scheduler.shared_tokens == 29


class Calls:
    """Counts calls, Python's and C's: the work of a step, on a machine of any speed."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Calls:
        self._outer = sys.getprofile()
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._outer)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        self.count += event in {"call", "c_call"}


@pytest.mark.parametrize(
    "row",
    [
        lambda i: Row([i % 99] * 20, 1 + i % 5),
        lambda i: Row([*range(30), i], 3, group="abc"[i % 3]),
        lambda i: Row(prompt(40), 3, output_tokens=1 + i),
    ],
    ids=["all_different", "one_template_three_jobs", "samples"],
)
def test_a_step_costs_as_much_among_many_waiting_rows_as_among_few(row: Callable[[int], Row]) -> None:
    calls = {}
    for waiting in (300, 10_000):
        made = steps(*(row(i) for i in range(waiting)), max_rows=16)
        # The first steps begin a round of each job, for which all that wait are sorted.
        for _ in range(4):
            made.step()
        with Calls() as counted:
            for _ in range(12):
                made.scheduler.next_step()
                for one in made.running:
                    one.generated += one.length == one.computed
                    if one.ended:
                        made.scheduler.retire(one)
        calls[waiting] = counted.count

    assert 0 < calls[10_000] < 1.2 * calls[300]
