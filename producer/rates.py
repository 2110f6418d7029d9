"""How fast a job goes while somebody watches: the rate of the last seconds, and the tokens of the whole time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

from jobs.status import JobStatus

#: Seconds that the displayed rate looks back.
RATE_WINDOW_S = 15.0
#: Seconds below which a rate says nothing.
_SHORTEST_S = 0.5
#: Samples that a history keeps: more than a terminal has columns.
_SAMPLES = 2_048

_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII = ".:-=+*%#"


def rows_done(status: JobStatus) -> int:
    """Result rows that have ended, those of batches in hand included."""
    return min(status.rows.total, status.rows.ended + status.running.rows)


class RateMeter:
    """Rows/s and tokens/s over the last RATE_WINDOW_S seconds, batches in hand included."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque()

    def measure(self, status: JobStatus, at: float) -> tuple[float, float]:
        """The rates at ``at``, seconds of any clock that goes on."""
        rows = status.rows.ended + status.running.rows
        tokens = status.tokens.completion + status.running.tokens
        if not tokens:
            self._seen.clear()  # a model that is being loaded says nothing about the rate
        self._seen.append((at, rows, tokens))
        while len(self._seen) > 2 and at - self._seen[0][0] > RATE_WINDOW_S:
            self._seen.popleft()
        start, rows_then, tokens_then = self._seen[0]
        elapsed = at - start
        if elapsed < _SHORTEST_S:
            return 0.0, 0.0
        # Rows in hand are lost from the count when their worker dies: the rate never shows below zero.
        return max(0.0, (rows - rows_then) / elapsed), max(0.0, (tokens - tokens_then) / elapsed)


class History:
    """The tokens of a job over the whole time that it is watched, in bounded memory."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, at: float, tokens: int) -> None:
        """``tokens`` generated in all at ``at``. What a dead worker loses from the count is not counted twice."""
        self._seen.append((at, max(tokens, self._seen[-1][1] if self._seen else 0)))
        if len(self._seen) > _SAMPLES:
            del self._seen[1:-1:2]

    def rates(self, cells: int) -> list[float]:
        """Tokens/s in equal stretches of the watched time: ``cells`` of them, or fewer of a second each."""
        start, end = (self._seen[0][0], self._seen[-1][0]) if self._seen else (0.0, 0.0)
        cells = min(cells, int(end - start))
        if cells < 1:
            return []
        width = (end - start) / cells
        counts = self._at([start + cell * width for cell in range(cells + 1)])
        return [(after - before) / width for before, after in pairwise(counts)]

    def _at(self, moments: Sequence[float]) -> list[float]:
        """The tokens at each of ``moments`` (ascending), on straight lines between the samples."""
        counts, place, last = [], 0, len(self._seen) - 2
        for moment in moments:
            while place < last and self._seen[place + 1][0] <= moment:
                place += 1
            (before, low), (after, high) = self._seen[place], self._seen[place + 1]
            share = (moment - before) / (after - before) if after > before else 1.0
            counts.append(low + (high - low) * min(1.0, max(0.0, share)))
        return counts


def sparkline(values: Sequence[float], *, ascii_only: bool = False) -> str:
    """One character for each value, as high as its share of the greatest; a blank where there was nothing."""
    levels = _ASCII if ascii_only else _BLOCKS
    most = max(values, default=0.0)
    return "".join(" " if value <= 0 else levels[round(value / most * (len(levels) - 1))] for value in values)
