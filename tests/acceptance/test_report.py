"""``promptmill report``: a page, or a JSON document, about a job that has ended or still runs; and ``watch`` alone."""

from __future__ import annotations

import json

import pytest

from jobs.ledger import keys
from tests.mill import Mill


@pytest.fixture(scope="module")
def ended(mill: Mill) -> str:
    """30 rows, of which three have no prompt."""
    rows = [{"id": f"<b>{i}</b>", "prompt": "" if i % 10 == 3 else f"item {i}"} for i in range(30)]
    source = mill.write("mixed.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("submit", source, "--model", "tiny", "--max-tokens", "4", "--batch-size", "5", "--skip-invalid")
    return mill.call(*arguments, "--label", "team=<i>shop</i>", "--wait", "--allow-failed").ok().out.strip()


def test_the_page_of_an_ended_job_is_written_where_the_command_runs(mill: Mill, ended: str) -> None:
    done = mill.call("report", ended).ok()
    page = (mill.folder / f"{ended}.html").read_text(encoding="utf-8")

    assert done.out == f"{ended}.html\n"
    assert "empty_prompt" in page
    assert "&lt;b&gt;3&lt;/b&gt;" in page
    assert "<b>" not in page
    assert str(mill.dataset(ended)) in page
    assert mill.call("report", ended, "--out", "-").ok().out.startswith("<!DOCTYPE html>\n<html")


def test_the_figures_are_those_of_the_dataset(mill: Mill, ended: str) -> None:
    report, table, status = mill.call("report", ended, "--json").ok().json, mill.table(ended), mill.status(ended)

    assert report["status"] == status
    assert not report["partial"]
    assert report["rows"] == table.num_rows == 30
    assert report["completion_lengths"]["total"] == status["tokens"]["completion"]
    assert [(found["code"], found["rows"]) for found in report["failures"]] == [("empty_prompt", 3)]
    assert [sample["row_index"] for sample in report["failures"][0]["samples"]] == [3, 13, 23]
    assert [share["worker"] for share in report["workers"]] == table["worker"].unique().drop_null().to_pylist()
    assert sum(interval["rows"] for interval in report["timeline"]["intervals"]) == 27
    assert [file["rows"] for file in report["files"]] == [30]


def test_a_job_that_runs_reports_what_has_finished(mill: Mill) -> None:
    source = mill.prompts("under-way", 60)
    arguments = ("submit", source, "--model", "tiny", "--max-tokens", "60", "--batch-size", "5")
    with mill.held(batch=2):
        job = mill.call(*arguments).ok().out.strip()
        mill.wait_for_rows(job, 5)
        mill.call("pause", job).ok()
    report = mill.call("report", job, "--json").ok().json
    page = mill.call("report", job, "--out", "-").ok().out
    mill.call("resume", job).ok()

    assert report["partial"]
    assert 5 <= report["rows"] < 60
    assert "Paused. </strong>" in page
    assert mill.wait_for(job, "completed")["rows"]["completed"] == 60
    assert mill.call("report", job, "--json").ok().json["rows"] == 60


def test_a_page_is_replaced_and_any_other_file_is_left_alone(mill: Mill, ended: str) -> None:
    mill.call("report", ended, "--out", "again.html").ok()
    mill.call("report", ended, "--out", "again.html").ok()
    other = mill.folder / "other.html"
    other.write_text("<p>mine</p>")
    refused = mill.call("report", ended, "--out", str(other))

    assert refused.code == 2
    assert "no page of `promptmill report`" in refused.err
    assert other.read_text() == "<p>mine</p>"
    assert not list(mill.folder.glob(".*.html.*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--out", "no-such-folder/page.html"), "the folder no-such-folder is not there"),
        (("--out", "page.html", "--json"), "exclude each other"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(mill: Mill, ended: str, arguments: tuple[str, ...], said: str) -> None:
    done = mill.call("report", ended, *arguments)

    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.count("\n") == 1


def test_the_report_of_an_unknown_job_exits_2(mill: Mill) -> None:
    assert mill.call("report", "job-that-never-was").code == 2


def test_watch_alone_takes_the_one_job_that_lives(idle: Mill) -> None:
    first = idle.call("submit", idle.prompts("first", 2), "--model", "nobody", "--deadline", "1h").ok().out.strip()
    second = idle.call("submit", idle.prompts("second", 2), "--model", "nobody").ok().out.strip()
    several = idle.call("watch")
    idle.call("cancel", second).ok()
    idle.wait_for(second, "cancelled")

    assert several.code == 2
    assert f"2 jobs live, newest first: {second} (in_progress), {first} (in_progress)" in several.err
    with idle.redis() as client:
        deadlines = keys.key(idle.store.id, "deadlines")
        assert client.zadd(deadlines, {first: 1.0}, xx=True, ch=True) == 1, "its deadline passes now"
    alone = idle.call("watch", "--json")
    assert (alone.code, alone.json["id"], alone.json["status"]) == (1, first, "expired")
    none = idle.call("watch")
    assert none.code == 2
    assert "no job lives" in none.err
