"""Which rows make up a padded batch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.padded_scheduler import PaddedScheduler

CONTEXT = 1000


@dataclass(eq=False)
class Row:
    group: str = "job"
    prompt_tokens: int = 10
    output_tokens: int = 10


rows = st.lists(
    st.builds(
        Row,
        group=st.sampled_from("abcd"),
        prompt_tokens=st.integers(1, CONTEXT // 2),
        output_tokens=st.integers(1, CONTEXT // 2),
    ),
    max_size=30,
)


def scheduler(max_rows: int = 8, max_batch_tokens: int = 10**6, **options: bool) -> PaddedScheduler[Row]:
    return PaddedScheduler(max_rows, max_batch_tokens, max_length=CONTEXT, **options)


def batches(waiting: PaddedScheduler[Row]) -> list[list[Row]]:
    taken = []
    while batch := waiting.next_batch():
        taken.append(batch)
    return taken


@settings(deadline=None, max_examples=60)
@given(rows, st.integers(1, 10), st.integers(1, 5000), st.booleans())
def test_every_row_is_taken_once_in_batches_within_the_limits(
    submitted: list[Row], max_rows: int, max_tokens: int, equal_prompts: bool
) -> None:
    waiting = scheduler(max_rows, max_tokens, equal_prompts=equal_prompts)
    for row in submitted:
        waiting.add(row)

    taken = batches(waiting)

    assert sorted(map(id, (row for batch in taken for row in batch))) == sorted(map(id, submitted))
    for batch in taken:
        longest = max(row.prompt_tokens for row in batch) + max(row.output_tokens for row in batch)
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * longest <= max_tokens
        assert longest <= CONTEXT
        assert not equal_prompts or len({row.prompt_tokens for row in batch}) == 1


@settings(deadline=None, max_examples=60)
@given(rows, st.integers(1, 6))
def test_the_oldest_row_of_some_group_is_in_every_batch_and_groups_take_turns(
    submitted: list[Row], max_rows: int
) -> None:
    waiting = scheduler(max_rows)
    for row in submitted:
        waiting.add(row)
    passed_over: dict[str, int] = {}
    all_groups = {row.group for row in submitted}

    while groups := {row.group for row in waiting}:
        oldest = {}
        for row in waiting:
            oldest.setdefault(row.group, row)
        anchor = waiting.next_batch()[0]
        assert oldest[anchor.group] is anchor
        passed_over = {group: passed_over.get(group, 0) + 1 for group in groups if group != anchor.group}
        assert max(passed_over.values(), default=0) < len(all_groups)


def test_a_row_unlike_all_others_waits_no_longer_than_those_before_it() -> None:
    waiting = scheduler(max_rows=4)
    odd = Row(prompt_tokens=400, output_tokens=400)
    for row in (Row(), odd):
        waiting.add(row)
    for _ in range(100):
        waiting.add(Row())

    waiting.next_batch()

    assert odd in waiting.next_batch()


def test_rows_of_similar_length_share_a_batch() -> None:
    waiting = scheduler(max_rows=4)
    for i in range(12):
        waiting.add(Row(prompt_tokens=(10, 100, 400)[i % 3]))

    assert all(len({row.prompt_tokens for row in batch}) == 1 for batch in batches(waiting))


def test_a_small_job_behind_a_large_one_is_in_the_next_batch_whole() -> None:
    waiting = scheduler(max_rows=32)
    for i in range(10_000):
        waiting.add(Row("large", prompt_tokens=5 + i % 90))
    waiting.next_batch()
    for i in range(10):
        waiting.add(Row("small", prompt_tokens=5 + 9 * i))

    batch = waiting.next_batch()

    assert sum(row.group == "small" for row in batch) == 10
    assert len(batch) == 32


def test_a_stream_of_new_jobs_does_not_starve_an_old_row() -> None:
    waiting = scheduler(max_rows=1)
    for _ in range(3):
        waiting.add(Row("old"))
    anchors = []
    for i in range(9):
        waiting.add(Row(f"new-{i}"))
        anchors.append(waiting.next_batch()[0].group)

    assert anchors.count("old") == 3


def test_rows_put_back_come_first() -> None:
    waiting = scheduler(max_rows=2)
    for i in range(6):
        waiting.add(Row(prompt_tokens=10 + i))
    first = waiting.next_batch()

    waiting.put_back(first)

    assert waiting.next_batch() == first


def test_an_oversized_row_runs_alone() -> None:
    waiting = scheduler(max_batch_tokens=50)
    waiting.add(Row(prompt_tokens=500))
    waiting.add(Row())

    assert [len(batch) for batch in batches(waiting)] == [1, 1]


def test_unwanted_rows_can_be_removed() -> None:
    waiting = scheduler()
    for i in range(4):
        waiting.add(Row(prompt_tokens=10 + i))

    removed = waiting.remove(lambda row: row.prompt_tokens % 2 == 0)

    assert [row.prompt_tokens for row in removed] == [10, 12]
    assert len(waiting) == 2


def test_rows_put_back_are_the_oldest_in_their_own_order_whatever_their_lengths() -> None:
    waiting = scheduler(max_rows=3)
    for length in (40, 10, 41, 42, 11):
        waiting.add(Row(prompt_tokens=length))
    first = waiting.next_batch()
    rest = list(waiting)

    waiting.put_back(first)

    assert list(waiting) == first + rest
    assert waiting.next_batch()[0] is first[0]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.builds(Row, prompt_tokens=st.integers(1, 30), output_tokens=st.integers(1, 30)), min_size=1))
def test_the_rows_beside_the_anchor_are_those_nearest_to_it_and_then_the_oldest(submitted: list[Row]) -> None:
    waiting = scheduler(max_rows=5)
    for row in submitted:
        waiting.add(row)

    anchor, *others = submitted
    others.sort(key=lambda row: abs(total(row) - total(anchor)))

    assert waiting.next_batch() == [anchor, *others[:4]]


def total(row: Row) -> int:
    return row.prompt_tokens + row.output_tokens


def test_all_rows_can_be_taken_out_and_others_come_after_them() -> None:
    waiting = scheduler()
    submitted = [Row(group, prompt_tokens=10 + i) for i, group in enumerate("abab")]
    for row in submitted:
        waiting.add(row)

    assert waiting.clear() == submitted
    assert len(waiting) == 0
    assert waiting.next_batch() == []
    waiting.add(submitted[2])
    assert batches(waiting) == [[submitted[2]]]


class Work:
    """Counts lines of Python: the work of a call, on a machine of any speed."""

    def __init__(self) -> None:
        self.lines = 0

    def __enter__(self) -> Work:
        self._outer = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._outer)

    def _trace(self, frame: FrameType, event: str, arg: Any) -> Any:
        self.lines += event == "line"
        return self._trace


@pytest.mark.parametrize(
    ("row", "options"),
    [
        (lambda i: Row(), {}),
        (lambda i: Row(prompt_tokens=1 + i % 400, output_tokens=1 + i // 400), {}),
        (lambda i: Row(prompt_tokens=1 + i % 13), {"equal_prompts": True}),
        (lambda i: Row("abc"[i % 3], prompt_tokens=1 + i % 97), {}),
        (lambda i: Row(prompt_tokens=500, output_tokens=500) if i else Row(), {"max_batch_tokens": 1500}),
        (lambda i: Row(prompt_tokens=500) if i else Row(output_tokens=500), {}),
    ],
    ids=["alike", "all_different", "equal_prompts", "three_jobs", "too_long_beside_the_anchor", "unfit_together"],
)
def test_a_batch_costs_as_much_among_many_waiting_rows_as_among_few(
    row: Callable[[int], Row], options: dict[str, Any]
) -> None:
    work = {}
    for count in (500, 20_000):
        waiting = scheduler(max_rows=32, **options)
        for i in range(count):
            waiting.add(row(i))
        with Work() as counted:
            waiting.next_batch()
        work[count] = counted.lines

    assert 0 < work[20_000] < 2 * work[500]
