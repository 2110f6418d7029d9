"""A report as one HTML page that needs nothing else: no network, no script, no font.

All markup is made by ``element`` (markup.py), which escapes what it is given. The one string that goes in as it is, is
our own style sheet.
"""

from __future__ import annotations

from importlib.resources import files

from jobs import __version__
from jobs.spec import Status
from producer.numbers import count, moment
from producer.report.details import engine, failures, reading, settings, workers
from producer.report.markup import Content, Html, element, join, theirs
from producer.report.model import Report
from producer.report.sections import endings, lengths, throughput, tiles

#: By this a file is known for a page of ours, which may be replaced.
GENERATOR = "promptmill report"

_TONES = {
    Status.COMPLETED: "good", Status.FAILED: "bad", Status.CANCELLED: "warn", Status.EXPIRED: "warn",
    Status.PAUSED: "warn", Status.CANCELLING: "warn",
}  # fmt: skip

_SECTIONS = (tiles, throughput, lengths, endings, failures, workers, engine, settings, reading)


def render_page(report: Report) -> str:
    """The page of ``report``."""
    body = element(
        "body",
        _header(report),
        _banner(report),
        *(section(report) for section in _SECTIONS),
        element("footer", f"Made by promptmill {__version__} on {moment(report.made_at)}."),
    )
    return f"<!DOCTYPE html>\n{element('html', _head(report), body, lang='en')}\n"


def _head(report: Report) -> Html:
    style = Html(files("producer.report").joinpath("page.css").read_text(encoding="utf-8"))
    return element(
        "head",
        element("meta", charset="utf-8"),
        # Nothing may be loaded and no script may run, whatever the rows of the job hold.
        element("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=GENERATOR),
        element("title", f"{report.status.id}: {_state(report.status.status)}"),
        element("style", style),
    )


def _header(report: Report) -> Html:
    status = report.status
    times = [f"submitted {moment(status.created_at)}"]
    if status.ended_at is not None:
        times.append(f"ended {moment(status.ended_at)}")
    facts: list[Content] = ["Model ", theirs(status.model), *(f" · {time}" for time in times)]
    for key, value in status.labels.items():
        facts += [" · ", theirs(f"{key}={value}")]
    return element(
        "header",
        element(
            "div",
            element("h1", status.id),
            element("span", _state(status.status), class_=f"state {_TONES.get(status.status, 'main')}"),
            class_="head",
        ),
        element("p", *facts, class_="quiet"),
        element("p", theirs(status.reason), class_="bad") if status.reason else None,
    )


def _banner(report: Report) -> Html:
    """What a reader must know before the figures: that they are not those of the whole job."""
    if not report.partial:
        return join(())
    rows, total = report.figures.rows, report.status.rows.total
    state = _state(report.status.status)
    return element(
        "p",
        element("strong", f"{state[0].upper()}{state[1:]}. "),
        f"These are the figures of the {count(rows)} of {count(total)} result rows whose batches had finished on "
        f"{moment(report.made_at)}. ",
        element("code", f"promptmill report {report.status.id}"),
        " makes the page anew.",
        class_="banner",
    )


def _state(status: Status) -> str:
    return status.value.replace("_", " ")
