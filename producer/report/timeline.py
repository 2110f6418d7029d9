"""When the rows of a job were done: counted in intervals that widen as the job turns out to be long."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from producer.report.model import Interval, Standstill, Timeline

#: Microseconds: the intervals that counting begins with.
_FINEST_US = 100_000
#: Intervals with rows in them that are kept; with more, intervals double.
_KEPT = 4_096
#: Intervals of the timeline that is told.
_TOLD = 120
#: What counts as a standstill: at least so many seconds, such a share of the time, and so many times the mean time
#: between two rows.
_STILL_S, _STILL_SHARE, _STILL_MEANS = 10.0, 0.03, 10


class TimelineCounter:
    """Counts rows and tokens by the time that they were done, in bounded memory."""

    def __init__(self) -> None:
        self._width = _FINEST_US
        #: Rows and tokens of interval ``n``, which begins ``n`` widths after the epoch.
        self._counts: dict[int, tuple[int, int]] = {}
        self._first: int | None = None
        self._last: int | None = None

    def add(self, table: pa.Table) -> None:
        """``table`` has ``started_at`` and ``finished_at``, in microseconds as int64, and ``completion_tokens``."""
        if not table.num_rows:
            return
        ends = (edge(table[name]).as_py() for name in ("started_at", "finished_at") for edge in (pc.min, pc.max))
        known = [moment for moment in ends if moment is not None]
        if not known:
            return
        self._first = min(known) if self._first is None else min(self._first, *known)
        self._last = max(known) if self._last is None else max(self._last, *known)
        places = pc.divide(table["finished_at"], self._width)
        grouped = pa.table({"place": places, "tokens": table["completion_tokens"]}).group_by("place", use_threads=False)
        for found in grouped.aggregate([([], "count_all"), ("tokens", "sum")]).to_pylist():
            if found["place"] is not None:
                self._count(found["place"], found["count_all"], found["tokens_sum"] or 0)
        while len(self._counts) > _KEPT:
            self._widen()

    def _count(self, place: int, rows: int, tokens: int) -> None:
        before = self._counts.get(place, (0, 0))
        self._counts[place] = (before[0] + rows, before[1] + tokens)

    def _widen(self) -> None:
        narrow, self._counts = self._counts, {}
        self._width *= 2
        for place, (rows, tokens) in narrow.items():
            self._count(place // 2, rows, tokens)

    @property
    def seconds(self) -> float:
        """From the first batch's begin to the last row."""
        return 0.0 if self._first is None or self._last is None else (self._last - self._first) / 1e6

    def timeline(self, until: datetime | None = None) -> Timeline | None:
        """The timeline from the first batch's begin to the last row, or to ``until`` where that is later."""
        if not self._counts or self._first is None or self._last is None:
            return None
        last = max(self._last, _microseconds(until)) if until is not None else self._last
        origin = self._first // self._width
        together = -(-(last // self._width - origin + 1) // _TOLD)
        width = self._width * together
        counts = [(0, 0)] * ((last // self._width - origin) // together + 1)
        for place, (rows, tokens) in self._counts.items():
            before = counts[(place - origin) // together]
            counts[(place - origin) // together] = (before[0] + rows, before[1] + tokens)
        return Timeline(
            start=_moment(origin * self._width),
            end=_moment(last),
            interval_s=width / 1e6,
            intervals=tuple(Interval(rows, tokens) for rows, tokens in counts),
            standstills=self._standstills(origin * self._width, last),
        )

    def _standstills(self, start: int, end: int) -> tuple[Standstill, ...]:
        """The long times without a row: before the first, between two, and after the last."""
        rows = sum(count for count, _ in self._counts.values())
        span = end - start
        least = max(_STILL_S * 1e6, span * _STILL_SHARE, span / rows * _STILL_MEANS)
        edges = [(start, start), *((place * self._width, (place + 1) * self._width) for place in sorted(self._counts))]
        gaps = ((before[1], after[0]) for before, after in pairwise([*edges, (end, end)]))
        return tuple(
            Standstill(_moment(before), _moment(after), (after - before) / 1e6)
            for before, after in gaps
            if after - before >= least
        )


def _microseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1e6)


def _moment(microseconds: int) -> datetime:
    return datetime.fromtimestamp(microseconds / 1e6, UTC)
