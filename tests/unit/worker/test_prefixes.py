"""Which running row has computed the beginning of another's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engine.prefixes import MIN_SHARED, Donors, common

_keys = count()


@dataclass(eq=False)
class Row:
    prompt_ids: Sequence[int]
    computed: int = 0
    key: int = field(default_factory=lambda: next(_keys))


def donors(*rows: Row) -> Donors[Row]:
    made: Donors[Row] = Donors()
    for row in rows:
        made.add(row)
    return made


def naive_common(left: Sequence[int], right: Sequence[int]) -> int:
    same = 0
    while same < min(len(left), len(right)) and left[same] == right[same]:
        same += 1
    return same


few_tokens = st.lists(st.integers(0, 1), max_size=12)
beginnings = st.sampled_from([[0] * MIN_SHARED, [1] * MIN_SHARED, [0] * (MIN_SHARED - 1), [0] * MIN_SHARED + [1] * 20])
prompts = st.builds(lambda beginning, own: [*beginning, *own], beginnings, few_tokens)


@settings(deadline=None, max_examples=200)
@given(prompts, prompts)
def test_two_prompts_have_in_common_what_comes_before_the_first_difference(left: list[int], right: list[int]) -> None:
    assert common(left, right) == naive_common(left, right) == common(right, left)


@settings(deadline=None, max_examples=200)
@given(prompts, st.lists(st.tuples(prompts, st.integers(0, 60), st.booleans()), max_size=8))
def test_the_best_donor_is_the_one_that_shares_most_and_of_those_the_one_that_is_furthest(
    asked: list[int], others: list[tuple[list[int], int, bool]]
) -> None:
    rows = [Row(prompt, min(computed, len(prompt))) for prompt, computed, _ in others]
    made = donors(*rows)
    gone = [row for row, (_, _, leaves) in zip(rows, others, strict=True) if leaves]
    for row in gone:
        made.remove(row)
    shared = {
        row: min(naive_common(asked, row.prompt_ids), len(asked) - 1)
        for row in rows
        if row not in gone and len(row.prompt_ids) > MIN_SHARED
    }
    expected = max(((most, min(most, row.computed)) for row, most in shared.items()), default=(0, 0))

    best = made.best(Row(asked))

    if expected[0] < MIN_SHARED:
        assert best is None
    else:
        assert best is not None
        assert (best.shared, best.ready) == expected
        assert shared[best.row] == best.shared


def test_the_last_token_of_a_prompt_is_never_shared_because_its_logits_are_needed() -> None:
    prompt = [*range(30)]
    best = donors(Row(prompt, computed=35)).best(Row(prompt))

    assert best is not None
    assert (best.shared, best.ready) == (29, 29)


def test_what_a_donor_has_is_asked_anew_each_time() -> None:
    donor = Row([*range(50)])
    made = donors(donor)
    ready = []
    for donor.computed in (0, 20, 49, 50, 60):
        best = made.best(Row([*range(40), 7, 7]))
        assert best is not None
        assert best.shared == 40
        ready.append(best.ready)

    assert ready == [0, 20, 40, 40, 40]


def test_a_sample_finds_its_own_prompt_among_any_number_of_the_same_template() -> None:
    template = [*range(100)]
    rows = [Row([*template, 1000 + i, 2000 + i, 3000 + i], computed=103) for i in range(500)]
    best = donors(*rows).best(Row(rows[321].prompt_ids))

    assert best is not None
    assert best.row is rows[321]
    assert best.shared == 102


class Prompt(Sequence[int]):
    """Counts how often its tokens are looked at."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = ids
        self.looks = 0

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int | slice) -> int | list[int]:  # type: ignore[override]
        self.looks += 1
        return self.ids[at]


def test_a_row_is_compared_with_few_of_many_that_begin_as_it_does() -> None:
    looks = []
    for many in (20, 2000):
        prompts = [Prompt([*range(40), i]) for i in range(many)]
        made = donors(*(Row(prompt) for prompt in prompts))
        before = sum(prompt.looks for prompt in prompts)
        assert made.best(Row([*range(40), -1])) is not None
        looks.append(sum(prompt.looks for prompt in prompts) - before)

    assert looks[0] == looks[1] > 0


def test_a_template_is_found_behind_a_header_that_older_rows_of_others_share() -> None:
    header, own = [*range(40)], [*range(100, 160)]
    others = [Row([*header, *range(200 + 10 * i, 240 + 10 * i)]) for i in range(30)]
    mine = Row([*header, *own, 1])
    donor = donors(*others, mine).best(Row([*header, *own, 2]))

    assert donor is not None
    assert (donor.row, donor.shared) == (mine, 100)


@settings(deadline=None, max_examples=50)
@given(st.lists(prompts, max_size=10), st.randoms(use_true_random=False))
def test_nothing_is_kept_of_rows_that_have_left(asked: list[list[int]], rng: Random) -> None:
    rows = [Row(prompt) for prompt in asked]
    made = donors(*rows)
    leaving = [*rows]
    rng.shuffle(leaving)
    for row in leaving:
        made.remove(row)

    assert vars(made) == vars(Donors())
    assert not any(made.best(row) for row in rows)
