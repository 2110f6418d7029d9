"""What ``check`` prints for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import orjson

from producer.check import CheckReport
from producer.estimate import Estimate, duration
from producer.forecast import Forecast
from producer.numbers import counted
from producer.tokens import Over, Tokens

_WIDTH, _LABEL, _BAR = 80, 12, 36

#: Rows beyond a limit that people are shown.
_SHOWN = 5


def report_text(report: CheckReport, forecast: Forecast, seconds: float) -> str:
    """The whole report; ``seconds`` is how long the check took."""
    lines = [*_summary(report, forecast, seconds)]
    if report.rows > report.invalid:
        lines += ["", *_histogram(report.tokens)]
    warnings = [*_warnings(report.tokens, forecast.context)]
    notes = [line for note in report.notes for line in _wrapped(f"note: {note}", "      ")]
    for group in (warnings, notes):
        lines += ["", *group] if group else []
    for number, shown in enumerate(report.shown, start=1):
        text = shown if isinstance(shown, str) else orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()
        lines += ["", f"--- prompt {number}", text]
    return "\n".join(lines) + "\n"


def _summary(report: CheckReport, forecast: Forecast, seconds: float) -> Iterator[str]:
    tokens, about = report.tokens, "" if report.tokens.counted and not report.tokens.estimated else "about "
    yield report.source
    rate = report.rows / max(seconds, 1e-9)
    batches = counted(report.batches, "batch", "batches")
    yield from _entry(
        "rows", f"{report.rows:,}, {report.invalid or 'none'} bad; {batches} of {report.batch_size}",
        f"checked in {seconds:.1f} s ({rate:,.0f} rows/s)",
    )  # fmt: skip
    yield from _entry("prompts", f"{about}{tokens.total:,} tokens, {tokens.longest:,} at most", tokens.method)
    yield from _entry("outputs", _outputs(tokens, report.result_rows, forecast.estimate))
    if forecast.context is not None:
        yield from _entry("context", f"{forecast.context:,} tokens ({forecast.context_from})")
    yield from _entry("time", *_time(forecast))


def _outputs(tokens: Tokens, result_rows: int, estimate: Estimate | None) -> str:
    text = f"at most {tokens.outputs:,} tokens, in {counted(result_rows, 'text')}"
    if estimate is not None and estimate.max_tokens_used is not None:
        share = f"{estimate.max_tokens_used:.0%}"
        text += f"; about {estimate.output_tokens:,}, if they use {share} of their max_tokens as others did"
    return text


def _time(forecast: Forecast) -> tuple[str, ...]:
    estimate = forecast.estimate
    if estimate is None:
        return ("unknown" if forecast.fleet else "--model NAME asks its live workers",)
    speed = f"{_rate(estimate.rows_per_s)} rows/s, {_rate(estimate.tokens_per_s)} tokens/s"
    seconds, most = duration(estimate.seconds), duration(estimate.seconds_at_most)
    if estimate.max_tokens_used is None:
        return f"at most {most} or so ({speed})", estimate.basis
    about = seconds if seconds.startswith("less") else f"about {seconds}"
    return f"{about}{f', at most {most}' if most != seconds else ''} ({speed})", estimate.basis


def _histogram(tokens: Tokens) -> Iterator[str]:
    bins = tokens.histogram()
    ranges = [f"{low:,}-{high:,}" for low, high, _ in bins]
    width, most = max(map(len, ranges)), max(rows for _, _, rows in bins)
    count_width = max(len(f"{rows:,}") for _, _, rows in bins)
    yield "tokens of a prompt, and rows:"
    for name, (_, _, rows) in zip(ranges, bins, strict=True):
        bar = "█" * max(1, round(_BAR * rows / most)) if rows else ""
        yield f"  {name:>{width}}  {rows:>{count_width},}  {bar}".rstrip()


def _warnings(tokens: Tokens, context: int | None) -> Iterator[str]:
    if context is None:
        return
    for sentence, over in over_sentences(tokens, context):
        yield from _wrapped(f"{sentence}:", "         ")
        for row in over.first[:_SHOWN]:
            about = "" if row.counted else "about "
            more = f" and {row.max_tokens:,} of max_tokens" if over is tokens.cut else ""
            yield f"  {row.file}:{row.line}: {about}{row.tokens:,} tokens{more}"
        if over.rows > _SHOWN:
            yield f"  ... and {over.rows - _SHOWN:,} more"


def over_sentences(tokens: Tokens, context: int) -> Iterator[tuple[str, Over]]:
    """What becomes of rows beyond the context, and which those are: warnings, for the others run all the same."""
    for over, fate in (
        (tokens.too_long, "too long for the context of {} tokens (error rows: prompt_too_long)"),
        (tokens.cut, "that may be cut: prompt and max_tokens exceed the context of {} tokens"),
    ):
        if over.rows:
            probably = "" if over.counted == over.rows else "probably "
            rows = counted(over.rows, "row")
            yield f"warning: {probably}{rows} {fate.format(f'{context:,}')}", over


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _entry(label: str, *texts: str) -> Iterator[str]:
    """A label, and texts beside it that begin a line each."""
    for text in texts:
        yield from _wrapped(f"  {label:<{_LABEL - 2}}{text}", " " * _LABEL)
        label = ""


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
