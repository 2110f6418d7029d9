"""Which contender runs next, with how many rows, and how long that may take. No torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from engine_bench.contenders import Contender

#: A contender this much slower than at its best so far is not tried with more rows.
_SLOWER = 1.25


@dataclass
class Trial:
    """One contender on one workload."""

    contender: Contender
    #: Rows at once to try, fewest first.
    sizes: tuple[int, ...]
    rounds: int
    #: Seconds of the first pass with each size.
    seconds: dict[int, float] = field(default_factory=dict)
    #: Why it is out.
    failure: str | None = None

    @property
    def best(self) -> int:
        """The number of rows with which it was fastest."""
        return min(self.seconds, key=lambda rows: self.seconds[rows])

    @property
    def past_its_best(self) -> bool:
        return bool(self.seconds) and self.seconds[max(self.seconds)] > _SLOWER * min(self.seconds.values())


@dataclass(frozen=True)
class Turn:
    trial: Trial
    rows: int
    round: int


def turns(trials: Sequence[Trial]) -> Iterator[Turn]:
    """The measurements of one workload. What comes later depends on what was found before: the caller fills
    ``seconds`` and ``failure`` of each trial as it goes.

    First every size of every contender once, then the best size of each until it has its rounds; contenders take
    turns, and another one begins each time, so that a change of the machine's speed is spread over all.
    """
    sizes = sorted({rows for trial in trials for rows in trial.sizes})
    for shift, rows in enumerate(sizes):
        for trial in _shifted(trials, shift):
            if rows in trial.sizes and trial.failure is None and not trial.past_its_best:
                yield Turn(trial, rows, round=0)
    for round_ in range(1, max((trial.rounds for trial in trials), default=0)):
        for trial in _shifted(trials, round_):
            if round_ < trial.rounds and trial.failure is None and trial.seconds:
                yield Turn(trial, trial.best, round_)


def sizes_for(contender: Contender, batch_sizes: Sequence[int], requests: int) -> tuple[int, ...]:
    """The sizes that make a difference: with all requests in one batch, a larger one is the same."""
    if not contender.batches:
        return (1,)
    return tuple(sorted({min(rows, requests) for rows in batch_sizes}))


def _shifted(trials: Sequence[Trial], by: int) -> list[Trial]:
    by %= max(len(trials), 1)
    return [*trials[by:], *trials[:by]]


class Pace:
    """Seconds for each token (prompt and output) of each contender so far, for estimates."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = defaultdict(list)

    def add(self, contender: str, seconds: float, tokens: int) -> None:
        self._seen[contender].append(seconds / tokens)

    def seconds(self, contender: str, tokens: int) -> float:
        """What one more measurement may take; that of the mean contender if it has not run yet."""
        seen = self._seen.get(contender) or [pace for paces in self._seen.values() for pace in paces]
        return tokens * sum(seen) / len(seen) if seen else 0.0
