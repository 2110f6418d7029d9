"""Whatever arrives, leaves and fails in whatever order, every row ends with its tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from scheduler_work import Device, Row, Steps, in_blocks, in_slots

from worker.engine.scheduler import Scheduler

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
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))
