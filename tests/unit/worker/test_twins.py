"""Requests that must have the same answer are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from jobs.spec import RowError, SamplingParams, now
from worker.engine.request import Completion, Request
from worker.engine.row import Row
from worker.engine.twins import MAX_ANSWERS, MAX_TOKENS, Twins


class Numbers:
    """A tokenizer whose texts are the ids."""

    special_ids: dict[str, int] = {}  # noqa: RUF012 - constant
    pad_id = 0
    eos_id = None

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def row(
    draw: int = 0, sample: int | None = None, *, prompt: Sequence[int] = (5, 6, 7), group: str = "job", **params: Any
) -> Row:
    """``draw`` is the seed, the job's and the row's, and the sample unless that is given."""
    sampling = SamplingParams(**{"max_tokens": 3, "seed": draw, **params})
    request = Request(group, [*prompt], sampling, seed=draw, sample=draw if sample is None else sample)
    return Row(request, Numbers(), frozenset(), 1_000_000)


def compute(one: Row) -> Row:
    while not one.done:
        one.take(100 + one.generated, None)
    return one


def answer(one: Row) -> Completion:
    return one.future.result(timeout=0)


def joined(twins: Twins, *rows: Row) -> list[bool]:
    return [twins.join(one) for one in rows]


def test_identical_greedy_requests_are_computed_once_whatever_their_seeds() -> None:
    twins = Twins()
    leader, *others = rows = [row(i, n=1 + i) for i in range(4)]

    assert joined(twins, *rows) == [False, True, True, True]
    assert ([*twins], len(twins)) == (others, 3)
    assert twins.ended(compute(leader)) == []

    assert len(twins) == 0
    assert twins.repeated == 3
    for other in others:
        assert answer(other).token_ids == answer(leader).token_ids == [100, 101, 102]
        assert answer(other).text == answer(leader).text
        assert answer(other).repeated
    assert not answer(leader).repeated


def test_an_answer_is_remembered_after_its_row_has_ended() -> None:
    twins = Twins()
    first, later = row(), row(group="another job")
    twins.join(first)
    twins.ended(compute(first))

    assert twins.join(later)
    assert answer(later).text == answer(first).text


@pytest.mark.parametrize("seed_and_sample", [(1, 0), (0, 1), (1, 1)])
def test_sampled_requests_are_twins_only_with_the_same_seed_and_sample(seed_and_sample: tuple[int, int]) -> None:
    twins = Twins()
    seed, sample = seed_and_sample
    rows = [row(temperature=0.5), row(seed, sample, temperature=0.5), row(temperature=0.5)]

    assert joined(twins, *rows) == [False, False, True]
    twins.ended(compute(rows[0]))
    assert [one.done for one in rows] == [True, False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": (5, 6)},
        {"max_tokens": 4},
        {"temperature": 0.1},
        {"repetition_penalty": 1.2},
        {"stop": ("x",)},
        {"logprobs": True},
        {"top_p": 0.5, "temperature": 0.1},
    ],
)
def test_requests_that_may_have_other_answers_are_computed(change: dict[str, Any]) -> None:
    twins = Twins()

    assert joined(twins, row(), row(**change)) == [False, False]
    assert len(twins) == 0


def test_the_rows_that_waited_for_a_cancelled_one_wait_for_the_first_of_them() -> None:
    twins = Twins()
    leader, heir, last = row(), row(), row()
    joined(twins, leader, heir, last)
    leader.take(1, None)
    leader.cancel()

    assert twins.ended(leader) == [heir]
    assert [*twins] == [last]
    assert not last.done
    assert twins.ended(compute(heir)) == []
    assert answer(last).token_ids == [100, 101, 102]


def test_what_a_cancelled_row_had_is_not_remembered() -> None:
    twins = Twins()
    leader = row()
    twins.join(leader)
    leader.take(1, None)
    leader.cancel()
    twins.ended(leader)

    assert not twins.join(row())


def test_a_row_that_is_cancelled_while_it_waits_is_gone_and_the_others_are_not() -> None:
    twins = Twins()
    leader, cancelled, other = row(), row(), row()
    joined(twins, leader, cancelled, other)
    cancelled.cancel()

    assert twins.ended(cancelled) == []
    assert [*twins] == [other]
    assert twins.ended(cancelled) == []
    assert twins.ended(compute(leader)) == []
    assert answer(cancelled).cancelled
    assert answer(other).text == answer(leader).text
    assert twins.repeated == 1


def test_a_row_that_was_cancelled_but_not_taken_out_is_not_answered_again() -> None:
    twins = Twins()
    leader, cancelled = row(), row()
    joined(twins, leader, cancelled)
    cancelled.cancel()

    assert twins.ended(compute(leader)) == []
    assert answer(cancelled).cancelled
    assert len(twins) == 0


def test_all_may_be_cancelled_together_in_any_order() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        twins = Twins()
        rows = [row(), row(), row()]
        joined(twins, *rows)
        for one in rows:
            one.cancel()

        assert [heir for at in order for heir in twins.ended(rows[at])] == []
        assert len(twins) == 0
        assert not twins.join(row())


def test_an_error_is_shared_and_not_remembered() -> None:
    twins = Twins()
    leader, other = row(), row()
    joined(twins, leader, other)
    leader.fail(RowError.NUMERIC_ERROR, "NaN")

    assert twins.ended(leader) == []
    assert answer(other).error_code is RowError.NUMERIC_ERROR
    assert answer(other).error_message == "NaN"
    assert not twins.join(row())


def test_a_row_does_not_wait_for_one_of_another_job() -> None:
    twins = Twins()
    large, small = row(group="large"), row(group="small")

    assert joined(twins, large, small) == [False, False]
    follower = row(group="large")
    assert twins.join(follower)
    twins.ended(compute(small))
    assert not follower.done
    assert twins.join(row(group="large"))
    twins.ended(compute(large))
    assert follower.done


def test_an_answer_given_again_is_dated_now_and_shares_no_work() -> None:
    twins = Twins()
    first, later = row(), row()
    first.shared_tokens = 2
    twins.join(first)
    twins.ended(compute(first))
    before = now()
    twins.join(later)

    assert answer(first).shared_tokens == 2
    assert answer(later).shared_tokens == 0
    assert before <= answer(later).started_at <= answer(later).finished_at <= before + timedelta(minutes=1)


def ask(twins: Twins, prompt: Sequence[int]) -> bool:
    """Whether the answer was known; computes it if not."""
    one = row(prompt=prompt)
    known = twins.join(one)
    if not known:
        twins.ended(compute(one))
    return known


def test_only_so_many_answers_are_remembered_those_asked_for_last() -> None:
    twins = Twins()
    for i in range(MAX_ANSWERS):
        assert not ask(twins, [i])
    assert ask(twins, [0])
    assert not ask(twins, [MAX_ANSWERS])

    assert ask(twins, [0])
    assert ask(twins, [2])
    assert not ask(twins, [1])


def test_only_so_many_tokens_are_remembered() -> None:
    twins = Twins()
    size = MAX_TOKENS // 10
    prompts = [[i] * (size - 3) for i in range(11)]
    for prompt in prompts:
        assert not ask(twins, prompt)

    assert [ask(twins, prompt) for prompt in prompts[1:]] == [True] * 10
    assert not ask(twins, [99] * (MAX_TOKENS + 1))
    assert not ask(twins, prompts[10])


def test_an_answer_that_two_jobs_computed_takes_room_once() -> None:
    twins = Twins()
    prompt = [1] * (MAX_TOKENS // 2 - 3)
    for _ in range(3):
        rows = [row(prompt=prompt, group=group) for group in "ab"]
        if joined(twins, *rows) == [False, False]:
            for one in rows:
                twins.ended(compute(one))

    assert not ask(twins, [2] * (MAX_TOKENS // 2 - 3))
    assert ask(twins, prompt)
