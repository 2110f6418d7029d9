"""Charts as inline SVG. Places along the x axis are per cent: a chart fits any width, and its text keeps its size.

Colours are classes of page.css.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from producer.numbers import compact
from producer.report.markup import Html, element, join

#: Pixels: the height of the bars, of the marks above them, and of the ticks below.
_HEIGHT, _ABOVE, _BELOW = 132, 18, 24
_BASE = _ABOVE + _HEIGHT
#: Ticks of an axis, at most about.
_TICKS_X, _TICKS_Y = 6, 4


@dataclass(frozen=True, slots=True)
class Bar:
    """From ``left`` to ``right`` on the x axis; ``title`` is what a pointer over it is told."""

    left: float
    right: float
    value: float
    title: str
    style: str = "bar"


@dataclass(frozen=True, slots=True)
class Mark:
    """A place on the x axis that has a name."""

    at: float
    name: str


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of the x axis that is shaded; ``title`` as in Bar."""

    left: float
    right: float
    title: str


def bar_chart(
    bars: Sequence[Bar],
    *,
    label: str,
    ticks: Sequence[tuple[float, str]],
    marks: Sequence[Mark] = (),
    bands: Sequence[Band] = (),
    whole: bool = False,
) -> Html:
    """Bars over an x axis with ``ticks`` (place, name); the y axis begins at 0, in ``whole``
    numbers if so. ``label`` is for those who see none."""
    start, end = bars[0].left, bars[-1].right
    top, steps = _scale(max(bar.value for bar in bars), least_step=1.0 if whole else 0.0)

    def x(at: float) -> float:
        return 100 * (at - start) / (end - start)

    def y(value: float) -> float:
        return _BASE - _HEIGHT * value / top

    plot = join(
        [
            *(_band(x(band.left), x(band.right), band.title) for band in bands),
            *(element("line", x1="0", x2="100%", y1=y(step), y2=y(step), class_="grid") for step in steps[1:]),
            *(_bar(x(bar.left), x(bar.right), y(bar.value), bar) for bar in bars if bar.value > 0),
            element("line", x1="0", x2="100%", y1=_BASE, y2=_BASE, class_="base"),
            *_marks([(x(mark.at), mark.name) for mark in marks]),
            *_ticks([(x(at), name) for at, name in ticks if start <= at <= end]),
        ]
    )
    height = _BASE + _BELOW
    names = (element("text", compact(step), x="100%", y=y(step) + 4, text_anchor="end") for step in steps)
    return element(
        "div",
        element("svg", *names, class_="axis", height=height, aria_hidden="true"),
        element("svg", plot, class_="plot", height=height, role="img", aria_label=label),
        class_="chart",
    )


def _bar(left: float, right: float, top: float, bar: Bar) -> Html:
    # Never lower than a pixel: what is there can be seen.
    top = min(top, _BASE - 1)
    return element(
        "rect", element("title", bar.title), x=f"{left:.3f}%", width=f"{right - left:.3f}%", y=top, height=_BASE - top,
        class_=bar.style,
    )  # fmt: skip


def _band(left: float, right: float, title: str) -> Html:
    return element(
        "rect", element("title", title), x=f"{left:.3f}%", width=f"{right - left:.3f}%", y=_ABOVE, height=_HEIGHT,
        class_="still",
    )  # fmt: skip


def _marks(marks: list[tuple[float, str]]) -> Iterable[Html]:
    """Dashed lines with their names above; of two names, the left one is written to the left of its line."""
    for place, (at, name) in enumerate(marks):
        leftwards = at > 75 or (place == 0 and len(marks) > 1 and at > 12)
        yield element("line", x1=f"{at:.3f}%", x2=f"{at:.3f}%", y1=_ABOVE - 12, y2=_BASE, class_="mark")
        yield element(
            "text", name, x=f"{at:.3f}%", dx=-5 if leftwards else 5, y=_ABOVE - 5, class_="name",
            text_anchor="end" if leftwards else "start",
        )  # fmt: skip


def _ticks(ticks: list[tuple[float, str]]) -> Iterable[Html]:
    for at, name in ticks:
        anchor = "start" if at < 3 else "end" if at > 95 else "middle"
        yield element("line", x1=f"{at:.3f}%", x2=f"{at:.3f}%", y1=_BASE, y2=_BASE + 4, class_="base")
        yield element("text", name, x=f"{at:.3f}%", y=_BASE + 18, text_anchor=anchor)


def _scale(most: float, least_step: float) -> tuple[float, list[float]]:
    """The top of a y axis and its steps from 0."""
    step = max(least_step, round_step(most / _TICKS_Y)) if most > 0 else 1.0
    places = max(1, math.ceil(most / step - 1e-9))
    return places * step, [place * step for place in range(places + 1)]


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below ``least``."""
    scale = 10.0 ** math.floor(math.log10(least))
    return next(step * scale for step in (1, 2, 5, 10) if step * scale >= least * (1 - 1e-9))


def length_ticks(start: float, end: float) -> list[tuple[float, str]]:
    """Round numbers from ``start`` to ``end``."""
    step = max(1.0, round_step((end - start) / _TICKS_X))
    first = math.ceil(start / step)
    return [(place * step, f"{place * step:,.0f}") for place in range(first, math.floor(end / step) + 1)]


#: Seconds between two ticks of a time axis, and the unit they are told in.
_TIME_STEPS = (
    *((step, 1, "s") for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)),
    *((step * 60, 60, "min") for step in (1, 2, 5, 10, 15, 30)),
    *((step * 3_600, 3_600, "h") for step in (1, 2, 3, 6, 12)),
    *((step * 86_400, 86_400, "d") for step in (1, 2, 5, 10, 20, 50, 100)),
)


def time_ticks(seconds: float) -> list[tuple[float, str]]:
    """Round times after the begin, up to ``seconds``."""
    step, unit, name = next((found for found in _TIME_STEPS if found[0] * _TICKS_X >= seconds), _TIME_STEPS[-1])
    places = int(seconds / step + 1e-9)
    return [(place * step, f"{place * step / unit:g} {name}" if place else "0") for place in range(places + 1)]
