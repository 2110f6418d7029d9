"""Lengths in tokens: counted exactly, told as quantiles and a histogram."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from producer.report.model import Bin, Lengths

#: Bars of a histogram, about.
_BINS = 32
#: Beyond this many times the 99th percentile, the longest share the last bar: they would flatten the others.
_FAR = 2


def counts(column: Any) -> list[tuple[Any, int]]:
    """Each value of ``column`` that is not null, and how often it is there."""
    counted = pc.value_counts(column.drop_null())
    return list(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


class LengthCounter:
    """Counts lengths, an entry for each length that occurs: no more than a context is long."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, lengths: pa.ChunkedArray[Any]) -> None:
        for length, rows in counts(lengths):
            self._counts[length] += rows

    def lengths(self) -> Lengths:
        if not self._counts:
            return Lengths()
        ordered = sorted(self._counts.items())
        count, least, most = self._counts.total(), ordered[0][0], ordered[-1][0]
        return Lengths(
            count=count,
            total=sum(length * rows for length, rows in ordered),
            least=least,
            median=quantile(ordered, count, 0.5),
            p95=quantile(ordered, count, 0.95),
            most=most,
            bins=_bins(ordered, least, min(most, _FAR * max(1, quantile(ordered, count, 0.99)))),
        )


def quantile(ordered: list[tuple[int, int]], count: int, share: float) -> int:
    """The least length that ``share`` of the ``count`` rows do not exceed; ``ordered`` are (length, rows)."""
    seen = 0
    for length, rows in ordered:
        seen += rows
        if seen >= share * count:
            return length
    return ordered[-1][0]


def _bins(ordered: list[tuple[int, int]], least: int, top: int) -> tuple[Bin, ...]:
    """Bins of one round width from ``least`` to ``top``, and one for whatever is longer."""
    width = round_width((top - least + 1) / _BINS)
    first = least // width * width
    rows: Counter[int] = Counter()
    beyond = 0
    for length, count in ordered:
        if length <= top:
            rows[(length - first) // width] += count
        else:
            beyond += count
    places = (top - first) // width + 1
    bins = [Bin(first + place * width, first + (place + 1) * width, rows[place]) for place in range(places)]
    return (*bins, Bin(first + places * width, None, beyond)) if beyond else tuple(bins)


def round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50 ... that is not below ``least``."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if step * scale >= least:
                return step * scale
        scale *= 10
