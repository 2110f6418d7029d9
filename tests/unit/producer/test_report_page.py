"""The page of a report: whole, self-contained, and unharmed by what rows hold."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from typing import Any

import orjson
import pyarrow as pa
import pytest

from jobs.job_file import JobFile
from jobs.results import result_schema
from jobs.spec import JobSpec, Status, now
from jobs.status import BatchCounts, JobStatus, RowCounts, TokenCounts
from producer.report import Report, render_page
from producer.report.charts import length_ticks, time_ticks
from producer.report.figures import COLUMNS, FigureCounter
from producer.report.markup import Html, element, escaped

EVIL = [
    "<script>alert('x')</script>",
    "</pre></style></title><img src=x onerror=alert(1)>",
    "\"quoted' & &amp; <b>",
    "emoji 🙂🏳️‍🌈, שלום, مرحبا, \u202egnp.exe",
    "nul \x00 bell \x07 escape \x1b[31m delete \x7f",
    "long " + "x" * 100_000,
]
VOID = {"meta", "link", "br", "hr", "img"}
START = now() - timedelta(hours=1)


class Page(HTMLParser):
    """Balances tags, and keeps what a browser would show and load."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def report(rows: list[dict[str, Any]], kind: Status = Status.COMPLETED, **spec: Any) -> Report:
    ended = kind.ended
    job = JobFile(
        id="job-74895a6814de3860", stage="s", created_at=START, spec=JobSpec(model="tiny", **spec), digest="d" * 64,
        rows=len(rows), result_rows=len(rows), batches=1, max_tokens_total=1,
    )  # fmt: skip
    status = JobStatus(
        id=job.id, status=kind, model="tiny", labels=job.spec.labels, priority=0, created_at=START,
        ended_at=now() if ended else None, rows=RowCounts(total=len(rows), completed=len(rows)),
        batches=BatchCounts(total=1, done=1), tokens=TokenCounts(prompt=1, completion=2), store="/store",
        results="/it's here/results/job_id=job-74895a6814de3860" if ended else None,
    )  # fmt: skip
    counter = FigureCounter(START)
    counter.add(pa.Table.from_pylist(rows, schema=result_schema(())).select(COLUMNS))
    file = {"path": "data-00000.parquet", "rows": len(rows), "bytes": 49_838, "sha256": "5" * 64}
    engine = {"computed_prompt_tokens": 30, "shared_prompt_tokens": 10, "repeated_rows": 0, "padding_ratio": 0.25}
    return Report(
        made_at=now(), status=status, job=job, partial=not ended, figures=counter.figures(),
        engine=engine if ended else {}, files=(file,) if ended else (),
    )  # fmt: skip


def row(index: int, **values: Any) -> dict[str, Any]:
    done = {"started_at": START, "finished_at": START + timedelta(seconds=index), "worker": "host-1", "attempt": 1,
            "prompt_tokens": 7 + index % 9, "completion_tokens": index % 40, "finish_reason": "stop"}  # fmt: skip
    common = {**dict.fromkeys(result_schema(()).names), "row_index": index, "sample_index": 0, "status": "ok"}
    return {**common, **done, **values}


def failed(index: int, custom_id: str, message: str) -> dict[str, Any]:
    return row(
        index, status="error", error_code="invalid_row", custom_id=custom_id, error_message=message,
        finish_reason="error", completion_tokens=None,
    )  # fmt: skip


def many(count: int = 300) -> list[dict[str, Any]]:
    return [row(index) for index in range(count)]


def test_a_page_has_its_sections_and_its_tags_balance() -> None:
    page = Page(render_page(report([*many(), failed(300, "a", "b")], template="Write {x}", labels={"team": "shop"})))

    for said in ("job-74895a6814de3860", "completed", "Throughput", "Lengths of completed rows", "How rows ended",
                 "Failures", "Workers", "Engine", "padding ratio", "Settings", "Write {x}", "team=shop", "The dataset",
                 "49.8 kB", "'/it''s here/results/job_id=job-74895a6814de3860/*.parquet'"):  # fmt: skip
        assert said in page.text, said
    assert {"svg", "rect", "table"} <= page.tags


@pytest.mark.parametrize("evil", EVIL)
def test_what_users_wrote_is_shown_and_never_markup(evil: str) -> None:
    plain = Page(render_page(report([*many(), failed(300, "a", "b")], template="t", system="s", labels={"k": "v"})))
    rows = [*many(), failed(300, evil, evil)]
    page = render_page(report(rows, template=evil, system=evil, labels={evil[:50]: evil}))
    found = Page(page)

    assert found.tags <= plain.tags
    assert {(tag, name) for tag, name, _ in found.attributes} <= {(tag, name) for tag, name, _ in plain.attributes}
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", page)
    begin = escape_pictures(evil[:200])
    assert found.text.count(begin) >= 5  # id, message, template, system message, label
    assert len(page) < 300_000


def escape_pictures(text: str) -> str:
    return re.sub(r"[\x00-\x1f]", lambda found: chr(0x2400 + ord(found[0])), text).replace("\x7f", "\u2421")


def test_a_page_loads_nothing_and_allows_no_script() -> None:
    page = Page(render_page(report(many())))
    policies = [value for tag, name, value in page.attributes if name == "content" and "default-src" in value]

    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "a"}
    assert not {name for _, name, _ in page.attributes} & {"src", "href", "srcset"}
    assert not re.search(r"url\(|@import|https?://", render_page(report(many())))


def test_a_page_has_a_light_and_a_dark_scheme_and_prints() -> None:
    page = render_page(report(many()))

    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_a_page_of_a_job_that_runs_says_so_and_how_to_read_what_there_is() -> None:
    page = Page(render_page(report(many(), Status.IN_PROGRESS)))

    assert "In progress. These are the figures of the 300 of 300 result rows" in page.text
    assert "promptmill results job-74895a6814de3860 --partial --to rows.jsonl" in page.text
    assert "Time so far" in page.text
    assert "The dataset" not in page.text


@pytest.mark.parametrize("kind", [Status.IN_PROGRESS, Status.COMPLETED])
@pytest.mark.parametrize("rows", [[], [row(0)], [row(0, status="cancelled", finished_at=None, worker=None)]])
def test_a_page_of_no_row_or_one_is_whole(rows: list[dict[str, Any]], kind: Status) -> None:
    assert "Throughput" in Page(render_page(report(rows, kind))).text


def test_a_standstill_is_said_and_shaded() -> None:
    rows = many(100) + [row(index, finished_at=START + timedelta(seconds=index + 600)) for index in range(100, 200)]
    page = Page(render_page(report(rows)))

    assert "Stood still for 10 min" in page.text
    assert [value for tag, name, value in page.attributes if (tag, name, value) == ("rect", "class", "still")]


def test_the_figures_are_one_json_document() -> None:
    found = report([*many(), failed(300, *EVIL[:2])], labels={"team": "shop"})
    document = json.loads(orjson.dumps(found.to_json(), default=str))

    assert document["rows"] == 301
    assert document["ends"] == {"stop": 300, "error": 1}
    assert document["failures"][0]["samples"][0]["custom_id"] == EVIL[0]
    assert document["spec"]["labels"] == {"team": "shop"}
    assert sum(interval["rows"] for interval in document["timeline"]["intervals"]) == 301
    assert not document["partial"]
    assert json.loads(orjson.dumps(replace(found, partial=True).to_json(), default=str))["partial"]


def test_only_markup_made_here_is_not_escaped() -> None:
    assert escaped("<b>") == "&lt;b&gt;"
    assert escaped(Html("<b>")) == "<b>"
    assert element("p", "<", element("b", "&"), title='"<') == '<p title="&quot;&lt;">&lt;<b>&amp;</b></p>'
    assert element("p", "a\tb\nc\ud800") == "<p>a\tb\nc\ufffd</p>"


@pytest.mark.parametrize("end", [1, 0.8, 7, 59, 61, 3_600, 86_400, 40 * 86_400])
def test_ticks_are_few_round_and_in_range(end: float) -> None:
    for ticks in (time_ticks(end), length_ticks(0, end)):
        assert 1 <= len(ticks) <= 8
        assert all(0 <= at <= end for at, _ in ticks)
        assert all(len(name) <= 9 for _, name in ticks)
