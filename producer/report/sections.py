"""The upper half of the page: the figures and charts. Each section takes the report and gives itself, or nothing where
it has nothing to say."""

from __future__ import annotations

from collections.abc import Sequence

from producer.numbers import count, duration, moment, rate, share
from producer.report.blocks import NOTHING, section, table
from producer.report.charts import Band, Bar, Mark, bar_chart, length_ticks, time_ticks
from producer.report.markup import Content, Html, element, join
from producer.report.model import Lengths, Report, Timeline

#: Standstills that are told in words.
_SHOWN_STANDSTILLS = 8

_ENDS = {
    "stop": "ended by itself or at a stop string",
    "length": "cut at max_tokens or the context",
    "error": "failed",
    "cancelled": "cancelled",
    "expired": "expired at the deadline",
}


def tiles(report: Report) -> Html:
    """The figures that people look for first."""
    status, figures = report.status, report.figures
    rows = status.rows
    lost = [
        f"{count(number)} {name}"
        for name, number in (("failed", rows.failed), ("cancelled", rows.cancelled), ("expired", rows.expired))
        if number
    ]
    begun = figures.timeline.start if figures.timeline is not None else None
    waited = (begun - status.created_at).total_seconds() if begun is not None else 0.0
    first = f"{duration(waited)} of it until the first batch"
    ended = status.ended_at or report.made_at
    took = max(0.0, (ended - status.created_at).total_seconds())
    return element(
        "section",
        _tile("Rows completed", count(rows.completed), f"of {count(rows.total)}"),
        _tile("Not completed", count(rows.ended - rows.completed), ", ".join(lost) or "none failed"),
        _tile("Tokens generated", count(status.tokens.completion), f"{count(status.tokens.prompt)} in prompts"),
        _tile("Speed", f"{rate(figures.rows_per_s)} rows/s", f"{rate(figures.tokens_per_s)} tokens/s"),
        _tile("Time" if status.ended_at else "Time so far", duration(took), first if waited >= 1 else ""),
        class_="tiles",
    )


def _tile(name: str, figure: str, beside: str) -> Html:
    return element("div", element("span", name), element("strong", figure), element("span", beside), class_="tile")


def throughput(report: Report) -> Html:
    """Rows/s and tokens/s over the time of the job."""
    timeline = report.figures.timeline
    if timeline is None:
        return section(
            "Throughput",
            element("p", "No row has been generated" + (" yet." if report.partial else "."), class_="quiet"),
        )
    rows = [interval.rows for interval in timeline.intervals]
    tokens = [interval.tokens for interval in timeline.intervals]
    notes: list[Content] = [
        element("p", f"From {moment(timeline.start)}, in intervals of {duration(timeline.interval_s)}; a row and its "
                "tokens count when the row is done.", class_="quiet")
    ]  # fmt: skip
    notes += [
        element("p", f"Stood still for {duration(still.seconds)} from {moment(still.start)}.", class_="warn")
        for still in timeline.standstills[:_SHOWN_STANDSTILLS]
    ]
    if (more := len(timeline.standstills) - _SHOWN_STANDSTILLS) > 0:
        notes.append(element("p", f"And {more} times more, shaded above.", class_="warn"))
    if report.figures.carried:
        notes.append(
            element("p", f"{count(report.figures.carried)} rows were done before the job was submitted, and are not "
                    "shown here.", class_="quiet")
        )  # fmt: skip
    return section(
        "Throughput",
        element("h3", "Rows/s"), _over_time(timeline, rows, "rows"),
        element("h3", "Tokens/s"), _over_time(timeline, tokens, "tokens"),
        *notes,
    )  # fmt: skip


def _over_time(timeline: Timeline, counts: Sequence[int], what: str) -> Html:
    width = timeline.interval_s
    seconds = width * len(counts)
    bars = [
        Bar(place * width, (place + 1) * width, number / width,
            f"after {duration(place * width)}: {rate(number / width)} {what}/s")
        for place, number in enumerate(counts)
    ]  # fmt: skip
    bands = [
        Band((still.start - timeline.start).total_seconds(), min(seconds, (still.end - timeline.start).total_seconds()),
             f"stood still for {duration(still.seconds)}")
        for still in timeline.standstills
    ]  # fmt: skip
    label = f"{what} per second over {duration(seconds)}, at most {rate(max(counts) / width)}"
    return bar_chart(bars, label=label, ticks=time_ticks(seconds), bands=bands)


def lengths(report: Report) -> Html:
    """How long prompts and completions were."""
    prompts, completions = report.figures.prompt_lengths, report.figures.completion_lengths
    if not completions.count:
        return NOTHING
    return section(
        "Lengths of completed rows, in tokens",
        element("div", _histogram("Prompts", prompts), _histogram("Completions", completions), class_="pair lengths"),
    )


def _histogram(name: str, found: Lengths) -> Html:
    if found.least == found.most:
        said = f"All {count(found.count)} are {found.most:,} tokens long." if found.count else "None is known."
        return element("div", element("h3", name), element("p", said, class_="quiet"))
    width = (found.bins[0].high or 0) - found.bins[0].low
    bars = [
        Bar(item.low, item.low + width, item.rows,
            f"{item.low:,} and more: {count(item.rows)} rows" if item.high is None
            else f"{item.low:,} to {item.high - 1:,}: {count(item.rows)} rows" if width > 1
            else f"{item.low:,}: {count(item.rows)} rows", "bar" if item.high is not None else "far")
        for item in found.bins
    ]  # fmt: skip
    told = f"median {found.median:,} · mean {found.mean:,.1f} · 95 % up to {found.p95:,} · longest {found.most:,}"
    beyond = found.bins[-1]
    note = f"The pale bar: {count(beyond.rows)} rows of {beyond.low:,} and more." if beyond.high is None else None
    marks = [Mark(found.median + 0.5, "median"), Mark(found.p95 + 0.5, "95 %")]
    return element(
        "div",
        element("h3", name),
        element("p", told, class_="quiet"),
        bar_chart(
            bars, label=f"rows by length: {told}", ticks=length_ticks(bars[0].left, bars[-1].right),
            marks=marks, whole=True,
        ),
        element("p", note, class_="quiet") if note else None,
    )  # fmt: skip


def endings(report: Report) -> Html:
    """What became of the rows."""
    figures = report.figures
    if not figures.rows:
        return NOTHING
    order = [name for name in (*_ENDS, *figures.ends) if name in figures.ends]
    kinds = {name: f"fill-{name}" if name in _ENDS else "fill-other" for name in order}
    stack = element(
        "div",
        *(element("i", class_=kinds[name], style=f"flex: {figures.ends[name]} 0 0") for name in kinds),
        class_="stack",
        aria_hidden="true",
    )
    rows = [
        [
            join([element("i", class_=f"swatch {kinds[name]}"), name]),
            _ENDS.get(name, ""),
            count(figures.ends[name]),
            share(figures.ends[name], figures.rows),
        ]
        for name in kinds
    ]
    again = f"{count(figures.repeated)} rows are of batches that were claimed more than once: a worker had ended."
    return section(
        "How rows ended",
        stack,
        table(["reason", "", "rows", "share"], rows, "nwff"),
        element("p", again, class_="quiet") if figures.repeated else None,
    )
