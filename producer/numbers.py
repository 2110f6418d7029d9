"""Numbers as people read them."""

from __future__ import annotations

from datetime import datetime
from itertools import pairwise

_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def count(number: float) -> str:
    return f"{number:,.0f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and what it counts: 1 row, 2 rows, 3 batches."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {many or one + 's'}"


def rate(number: float) -> str:
    """Three digits, and no more after the point than that: 0.42, 8.31, 24.1, 1,756."""
    digits = 0 if number >= 100 or number == 0 else 1 if number >= 10 else 2
    return f"{number:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """Per cent; neither 0 nor 100 unless it is."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < percent < 100 else f"{percent:.1f} %"


def duration(seconds: float) -> str:
    """The two largest units: 4.2 s, 1 min 05 s, 3 h 20 min, 2 d 04 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest = round(seconds)
    for (size, unit), (smaller, below) in pairwise(_UNITS):
        if rest >= size:
            left = rest % size // smaller
            return f"{rest // size} {unit}" + (f" {left:02} {below}" if left else "")
    return f"{rest} s"


def moment(when: datetime | None) -> str:
    return "" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def size(number: float) -> str:
    """Bytes: 49.8 kB, 128 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1_000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{rate(number)} {unit}"
        number /= 1_000
    return f"{rate(number)} TB"


def compact(number: float) -> str:
    """A tick of an axis: 0.5, 50, 2k, 1.5M."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:g}{unit}"
    return f"{number:g}"
