"""Which tokens a step computes: every row gets its own, in order, whatever comes and goes beside it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from test_block_cache import BlockDevice
from test_slot_cache import SlotDevice

from worker.engine.block_cache import BlockCache
from worker.engine.prefixes import MIN_SHARED
from worker.engine.scheduler import Chunk, Scheduler
from worker.engine.slot_cache import SlotCache

PLENTY = 10**6

_keys = count()


@dataclass(eq=False)
class Row:
    prompt_ids: list[int] = field(default_factory=lambda: [0] * 5)
    #: How many tokens it will have generated when it ends, and the most that it might.
    ends_after: int = 1
    output_tokens: int = 20
    group: str = "job"
    key: int = field(default_factory=lambda: next(_keys))
    computed: int = 0
    generated: int = 0
    shared_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt_ids)

    @property
    def length(self) -> int:
        return len(self.prompt_ids) + self.generated

    @property
    def ended(self) -> bool:
        return self.generated >= self.ends_after

    @property
    def most_positions(self) -> int:
        """What the cache has to hold of it; the last token is never computed."""
        return len(self.prompt_ids) + self.ends_after - 1

    def contents(self) -> list[int]:
        """What must lie at each position of the row: a number that all tokens up to there decide."""
        seen, numbers = 0, []
        for token in [*self.prompt_ids, *((self.key, at) for at in range(self.generated))]:
            seen = hash((seen, token))
            numbers.append(abs(seen))
        return numbers


Device = BlockDevice | SlotDevice


def in_blocks(positions: int, _: int, grain: int) -> BlockDevice:
    return BlockDevice(BlockCache(positions // grain + 1, grain))


def in_slots(positions: int, longest: int, grain: int) -> SlotDevice:
    rounded = -(-longest // grain) * grain
    doubled = [grain * 2**k for k in range(12) if grain * 2**k < rounded]
    return SlotDevice(SlotCache(positions, longest, smallest=grain), [*doubled, rounded])


class Steps:
    """An engine whose model is one number for each token; checks each step as it is made."""

    def __init__(self, device: Device, max_rows: int, max_step_tokens: int) -> None:
        self.device = device
        self.scheduler: Scheduler[Row] = Scheduler(device.cache, max_rows, max_step_tokens)
        self.ended: list[Row] = []
        self.unfit: list[Row] = []
        self.last: list[Chunk[Row]] = []
        self.computed = 0
        self.steps = 0

    @property
    def running(self) -> list[Row]:
        return [*islice(self.scheduler, self.scheduler.running)]

    def add(self, *rows: Row) -> None:
        for row in rows:
            self.scheduler.add(row)

    def step(self) -> list[Chunk[Row]]:
        scheduler = self.scheduler
        before = {row.key: row.computed for row in self.running}
        generating = [row for row in self.running if row.length - row.computed == 1]
        preempted, in_hand = scheduler.preempted, len([*scheduler])
        self.last = chunks = scheduler.next_step()
        self.steps += bool(chunks)
        unfit, scheduler.unfit = scheduler.unfit, []
        assert bool(chunks or unfit) == bool(in_hand)
        self.check_chunks(chunks)
        self.check_running(chunks, before, generating, scheduler.preempted - preempted)
        for row in unfit:
            assert not self.device.cache.fits(row.length)
            scheduler.retire(row)
        self.unfit += unfit
        self.device.run()
        self.compute(chunks)
        return chunks

    def check_chunks(self, chunks: Sequence[Chunk[Row]]) -> None:
        scheduler, running = self.scheduler, {row.key for row in self.running}
        tokens = sum(chunk.count for chunk in chunks)
        assert len({chunk.row.key for chunk in chunks}) == len(chunks) <= len(running) <= scheduler.max_rows
        assert tokens <= max(scheduler.max_step_tokens, scheduler.max_rows)
        for chunk in chunks:
            assert chunk.row.key in running
            assert chunk.count > 0
            assert chunk.row.computed == chunk.start + chunk.count <= self.device.cache.held(chunk.row.key)
            assert chunk.samples == (chunk.row.computed == chunk.row.length)
        self.computed += tokens

    def check_running(
        self, chunks: Sequence[Chunk[Row]], before: dict[int, int], generating: Sequence[Row], preempted: int
    ) -> None:
        """Rows that were running go on where they were, but for as many as were preempted."""
        running = {row.key for row in self.running}
        again = [chunk for chunk in chunks if chunk.start != before.get(chunk.row.key, 0)]
        for chunk in again:
            assert chunk.start == 0 or MIN_SHARED <= chunk.start < chunk.row.prompt_tokens
        gone = before.keys() - running
        assert len(gone) + sum(chunk.row.key in before for chunk in again) <= preempted
        one_token = {chunk.row.key for chunk in chunks if chunk.count == 1 and chunk.samples}
        assert sum(row.key not in one_token for row in generating) <= preempted

    def compute(self, chunks: Sequence[Chunk[Row]]) -> None:
        contents = {chunk.row.key: chunk.row.contents() for chunk in chunks}
        for chunk in chunks:
            assert self.read(chunk.row, chunk.start) == contents[chunk.row.key][: chunk.start]
        for chunk in chunks:
            for position in range(chunk.start, chunk.start + chunk.count):
                cells, index = self.device.cell(chunk.row.key, position)
                cells[index] = contents[chunk.row.key][position]
        for chunk in chunks:
            assert self.read(chunk.row, chunk.row.computed) == contents[chunk.row.key][: chunk.row.computed]
        for row in [chunk.row for chunk in chunks if chunk.samples]:
            row.generated += 1
            if row.ended:
                self.scheduler.retire(row)
                self.ended.append(row)

    def read(self, row: Row, positions: int) -> list[int]:
        cells = [self.device.cell(row.key, position) for position in range(positions)]
        return [cells[index] for cells, index in cells]

    def until_all_ended(self, at_most: int = PLENTY) -> None:
        at_most += self.steps
        while [*self.scheduler]:
            self.step()
            assert self.steps <= at_most
        self.check_nothing_left()

    def check_nothing_left(self) -> None:
        scheduler = self.scheduler
        assert self.device.cache.used_ratio == 0
        assert (scheduler.running, len(scheduler)) == (0, 0)
        assert scheduler._admitted == set()
        assert vars(scheduler._donors) == {"_alike": {}, "_same": {}}


TEMPLATES = [list(range(start, start + length)) for start, length in ((100, 20), (200, 45), (300, 16))]

prompts = st.one_of(
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
    st.builds(
        lambda template, own: [*template, *own], st.sampled_from(TEMPLATES), st.lists(st.integers(0, 3), max_size=25)
    ),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever arrives, is cancelled, is put back and fails in whatever order, each row ends with its tokens."""

    new_device: Callable[[int, int, int], Device]

    @initialize(
        positions=st.integers(0, 300),
        grain=st.integers(1, 9),
        max_rows=st.integers(1, 6),
        max_step_tokens=st.one_of(st.integers(1, 8), st.integers(1, 100)),
    )
    def start(self, positions: int, grain: int, max_rows: int, max_step_tokens: int) -> None:
        self.shape = positions, 90, grain
        self.steps = Steps(type(self).new_device(*self.shape), max_rows, max_step_tokens)
        self.rows: list[Row] = []
        self.removed: list[Row] = []
        self.begun_again = 1

    @property
    def scheduler(self) -> Scheduler[Row]:
        return self.steps.scheduler

    @rule(
        prompt=prompts,
        outputs=st.lists(st.integers(1, 40), min_size=1, max_size=4),
        group=st.sampled_from("abc"),
    )
    def samples_of_a_prompt_arrive(self, prompt: list[int], outputs: list[int], group: str) -> None:
        self.arrive([Row(prompt, output, 40, group) for output in outputs])

    @rule(
        template=st.sampled_from(TEMPLATES),
        lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 20)), min_size=1, max_size=8),
        group=st.sampled_from("abc"),
    )
    def rows_of_a_template_arrive(self, template: list[int], lengths: list[tuple[int, int]], group: str) -> None:
        tails = [[*range(self.count, self.count + own)] for own, _ in lengths]
        self.arrive([Row([*template, *own], length[1], 20, group) for own, length in zip(tails, lengths, strict=True)])

    @precondition(lambda self: self.in_hand)
    @rule(steps=st.integers(1, 6))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.steps.step()

    @precondition(lambda self: self.in_hand)
    @rule(which=st.lists(st.integers(0), min_size=1, max_size=4))
    def cancel(self, which: list[int]) -> None:
        unwanted = {self.pick(each).key for each in which}
        removed = self.scheduler.remove(lambda row: row.key in unwanted)
        assert {row.key for row in removed} == unwanted
        assert all(row.computed == 0 for row in removed)
        self.removed += removed

    @precondition(lambda self: self.in_hand)
    @rule(which=st.integers(0))
    def put_back(self, which: int) -> None:
        row = self.pick(which)
        waiting, was_running = len(self.scheduler), row in self.steps.running
        self.scheduler.put_back(row)
        assert len(self.scheduler) == waiting + was_running
        assert row not in self.steps.running
        self.begun_again += 1

    @precondition(lambda self: self.scheduler.running)
    @rule()
    def a_step_fails(self) -> None:
        """What the engine does about it: less at once, and an empty cache."""
        failed, scheduler = [chunk.row for chunk in self.steps.last], self.scheduler
        scheduler.max_rows = max(len(failed) // 2, 1)
        scheduler.max_step_tokens = max(scheduler.max_step_tokens // 2, 1)
        scheduler.restart({row.key for row in failed})
        assert scheduler.running == 0
        assert scheduler.cache.used_ratio == 0
        self.steps.device = type(self).new_device(*self.shape)
        scheduler.cache = self.steps.device.cache
        self.begun_again += 1

    def teardown(self) -> None:
        if hasattr(self, "steps"):
            # The row that was admitted first gets a token in each step, and none is put before it.
            self.steps.until_all_ended(self.begun_again * sum(map(total, self.rows)) - self.steps.steps)
            ended, unfit = Counter(map(id, self.steps.ended)), Counter(map(id, self.steps.unfit))
            assert ended + unfit + Counter(map(id, self.removed)) == Counter(map(id, self.rows))
            assert all(row.generated == row.ends_after for row in self.steps.ended)
            cache = self.steps.device.cache
            assert all(cache.fits(row.most_positions) for row in self.steps.ended)
            assert not any(cache.fits(row.most_positions) for row in self.steps.unfit)

    @property
    def in_hand(self) -> list[Row]:
        return [*self.scheduler]

    @property
    def count(self) -> int:
        return len(self.rows)

    def pick(self, which: int) -> Row:
        return self.in_hand[which % len(self.in_hand)]

    def arrive(self, rows: list[Row]) -> None:
        self.rows += rows
        self.steps.add(*rows)


def total(row: Row) -> int:
    return row.prompt_tokens + row.ends_after


class BlockMachine(SchedulerMachine):
    new_device = staticmethod(in_blocks)


class SlotMachine(SchedulerMachine):
    new_device = staticmethod(in_slots)


@pytest.mark.parametrize("machine", [BlockMachine, SlotMachine])
def test_every_row_ends_with_its_tokens_whatever_happens_beside_it(machine: type[SchedulerMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=150, stateful_step_count=30, deadline=None))


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


def test_a_donor_that_leaves_before_the_device_copied_from_it_has_given_all_the_same() -> None:
    donor, heir = Row(prompt(30), 30), Row(prompt(30), 3)
    for slots in (False, True):
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
        donor.generated = heir.generated = 0


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
