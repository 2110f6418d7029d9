"""Which tokens the next step computes, and whose. Pure Python: no torch, no threads, no clock."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from worker.engine.kv_cache import KVCache
from worker.engine.prefixes import MIN_SHARED, Donors, Prompted
from worker.engine.waiting import Generating, WaitingRows


class Schedulable(Generating, Prompted, Protocol):
    """A row: a prompt, the tokens generated so far, and how much of both is in the cache."""

    #: Prompt tokens that another row had computed when this one first entered; the scheduler's to set.
    shared_tokens: int

    @property
    def length(self) -> int:
        """Tokens of the prompt and generated."""
        ...


RowT = TypeVar("RowT", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class Chunk(Generic[RowT]):
    """Tokens ``start`` to ``start + count`` of a row, to be run in one step."""

    row: RowT
    start: int
    count: int
    #: Whether the logits of the last of them choose the row's next token; a prompt may take several steps.
    samples: bool


class Scheduler(Generic[RowT]):
    """Forms steps of at most ``max_step_tokens`` tokens from at most ``max_rows`` rows.

    Rows that generate go first, one token each; then prompts that are half computed; then waiting rows enter, for as
    long as there are slots, tokens, and room in the cache. A row that finds no room in the cache sends back the row
    that entered last (it may be itself), which begins again later with what it has generated: its tokens stay, its
    keys and values are computed anew.
    """

    def __init__(self, cache: KVCache, max_rows: int, max_step_tokens: int) -> None:
        self.cache = cache
        self.max_rows = max_rows
        self.max_step_tokens = max_step_tokens
        #: Rows that the cache could not hold even alone; whoever forms the steps has to end them.
        self.unfit: list[RowT] = []
        self.preempted = 0
        #: Of the prompt tokens of admitted rows, how many another row had computed; a row counts once.
        self.shared_tokens = 0
        self._waiting: WaitingRows[RowT] = WaitingRows()
        #: In order of admission.
        self._running: dict[int, RowT] = {}
        #: Keys of the rows that are running, or were before they were put back.
        self._admitted: set[int] = set()
        self._donors: Donors[RowT] = Donors()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RowT]:
        """All rows, running and waiting."""
        yield from [*self._running.values()]
        yield from self._waiting

    @property
    def running(self) -> int:
        return len(self._running)

    def add(self, row: RowT) -> None:
        self._waiting.add(row)

    def next_step(self) -> list[Chunk[RowT]]:
        """The chunks of the next step; they count as computed from here on. Empty if there is nothing to run."""
        # Every running row has to get a token.
        step = _Step[RowT](max(self.max_step_tokens, self.max_rows))
        self._go_on(step)
        self._admit(step)
        for chunk in step.chunks.values():
            chunk.row.computed = chunk.start + chunk.count
        return [*step.chunks.values()]

    def retire(self, row: RowT) -> None:
        """Forget a row that has ended."""
        self._admitted.discard(row.key)
        if self._leave(row):
            self._waiting.ended(row)

    def put_back(self, row: RowT) -> None:
        """Take a running row out of its slot; it is the next of its group to run, from its first token on."""
        if self._leave(row):
            self._waiting.put_back(row)

    def restart(self, first: Container[int]) -> None:
        """Put all running rows back, to run again in the order of admission, but those in ``first`` (keys) first."""
        rows = sorted(self._running.values(), key=lambda row: row.key not in first)
        # The last to be put back is the first to run.
        for row in reversed(rows):
            self.put_back(row)

    def remove(self, unwanted: Callable[[RowT], bool]) -> list[RowT]:
        """Take out the rows for which ``unwanted`` is true."""
        running = [row for row in self._running.values() if unwanted(row)]
        for row in running:
            self._leave(row)
        removed = running + self._waiting.remove(unwanted)
        self._admitted.difference_update(row.key for row in removed)
        return removed

    def _go_on(self, step: _Step[RowT]) -> None:
        # Sorting is stable: among those that generate, and among the others, the order of admission stays.
        for row in sorted(self._running.values(), key=lambda row: row.length - row.computed > 1):
            if row.key in self._running and (count := min(row.length - row.computed, step.left)):
                self._make_room(row, row.computed + count, step)
                if row.key in self._running:
                    step.add(row, count)

    def _make_room(self, row: RowT, positions: int, step: _Step[RowT]) -> None:
        """See to it that the cache has room for ``row``; rows leave, in the end the row itself, until it has."""
        while row.key in self._running and not self.cache.reserve(row.key, positions):
            last = next(reversed(self._running.values()))
            step.drop(last)
            self.preempted += 1
            self.put_back(last)

    def _admit(self, step: _Step[RowT]) -> None:
        """Let waiting rows enter. Those whose prompt begins with what is only now being computed are passed over."""
        passed: list[RowT] = []
        while step.left and len(self._running) < self.max_rows and len(passed) < self.max_rows:
            row = self._waiting.pop()
            if row is None:
                break
            if not self.cache.fits(row.length):
                self.unfit.append(row)
            elif self._is_worth_waiting(row):
                passed.append(row)
            elif not self._enter(row, step):
                passed.append(row)
                break
        for row in reversed(passed):
            self._waiting.put_back(row)

    def _is_worth_waiting(self, row: RowT) -> bool:
        donor = self._donors.best(row)
        if donor is None or donor.shared - donor.ready < MIN_SHARED:
            return False
        # With its last token a donor leaves: waiting for it, rows of one token each would run one by one.
        return donor.row.output_tokens - donor.row.generated > 1

    def _enter(self, row: RowT, step: _Step[RowT]) -> bool:
        """Give a row its place and its first chunk; False if the cache has no room for it."""
        shared = self._share(row)
        if not self.cache.reserve(row.key, row.length):
            if shared:
                self.cache.free(row.key)
            return False
        row.computed = shared
        self._running[row.key] = row
        self._donors.add(row)
        if row.key not in self._admitted:
            # A group does not pay again for a row that had to make room.
            self._admitted.add(row.key)
            self._waiting.served(row)
            row.shared_tokens = shared
            self.shared_tokens += shared
        step.add(row, min(row.length - shared, step.left))
        return True

    def _share(self, row: RowT) -> int:
        """Take over what a donor has computed of the row's prompt; how many positions that is."""
        donor = self._donors.best(row)
        if donor is None or donor.ready < MIN_SHARED:
            return 0
        return self.cache.fork(row.key, donor.row.key, donor.ready)

    def _leave(self, row: RowT) -> bool:
        """Whether the row was running."""
        if self._running.pop(row.key, None) is None:
            return False
        self._donors.remove(row)
        self.cache.free(row.key)
        row.computed = 0
        return True


class _Step(Generic[RowT]):
    """The chunks of a step while it is being formed."""

    def __init__(self, max_tokens: int) -> None:
        self.left = max_tokens
        self.chunks: dict[int, Chunk[RowT]] = {}

    def add(self, row: RowT, count: int) -> None:
        self.chunks[row.key] = Chunk(row, row.computed, count, row.computed + count == row.length)
        self.left -= count

    def drop(self, row: RowT) -> None:
        if (chunk := self.chunks.pop(row.key, None)) is not None:
            self.left += chunk.count
