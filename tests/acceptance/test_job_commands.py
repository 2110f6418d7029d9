"""Looking at jobs and steering them: status, list, watch, pause, resume, priority, cancel."""

from __future__ import annotations

import time
from datetime import datetime

import pytest
from acceptance_work import COMMANDS, submit

from tests.mill import Mill

#: What scripts rely on; a job may tell more.
STATUS_FIELDS = {
    "id": str, "status": str, "model": str, "labels": dict, "priority": int, "created_at": str,
    "started_at": (str, type(None)), "ended_at": (str, type(None)), "deadline": (str, type(None)), "rows": dict,
    "batches": dict, "tokens": dict, "rate": dict, "eta_s": (int, float, type(None)), "errors": dict, "store": str,
    "results": (str, type(None)),
}  # fmt: skip


@pytest.fixture(scope="module")
def ended(mill: Mill) -> str:
    return submit(mill, "ended", 20, "--wait", "--label", "team=shop", "--priority", "-2")


def test_status_json_has_the_promised_fields(mill: Mill, ended: str) -> None:
    for status in (mill.status(ended), mill.status(submit(mill, "waiting", 3, model="nobody"))):
        assert set(STATUS_FIELDS) <= set(status)
        for name, kind in STATUS_FIELDS.items():
            assert isinstance(status[name], kind), name
        assert set(status["rows"]) == {"total", "completed", "failed", "cancelled", "expired"}
        assert set(status["batches"]) == {"total", "done", "running"}
        assert set(status["tokens"]) == {"prompt", "completion"}
        assert set(status["rate"]) == {"rows_per_s", "tokens_per_s"}


def test_status_of_an_ended_job_counts_what_its_dataset_holds(mill: Mill, ended: str) -> None:
    status, table = mill.status(ended), mill.table(ended)

    assert (status["status"], status["priority"], status["labels"]) == ("completed", -2, {"team": "shop"})
    assert status["rows"] == {"total": 20, "completed": 20, "failed": 0, "cancelled": 0, "expired": 0}
    assert status["batches"] == {"total": 4, "done": 4, "running": 0}
    assert status["tokens"] == {
        "prompt": sum(table["prompt_tokens"].to_pylist()),
        "completion": sum(table["completion_tokens"].to_pylist()),
    }
    assert status["results"] == str(mill.dataset(ended))
    assert status["eta_s"] is None
    times = [datetime.fromisoformat(status[name]) for name in ("created_at", "started_at", "ended_at")]
    assert times == sorted(times)
    assert all(status[name].endswith("Z") for name in ("created_at", "started_at", "ended_at"))


def test_status_of_an_ended_job_is_read_from_the_store_when_redis_has_forgotten_it(mill: Mill) -> None:
    job = submit(mill, "forgotten", 20, "--wait", "--label", "team=shop", "--priority", "-2")
    before = mill.status(job)
    with mill.ledger() as ledger:
        ledger.forget(job)
    after = mill.status(job)

    for name in ("status", "rows", "tokens", "batches", "errors", "results", "labels", "priority"):
        assert after[name] == before[name], name


def test_status_for_people_names_the_figures(mill: Mill, ended: str) -> None:
    out = mill.call("status", ended).ok().out

    assert "completed" in out
    assert "20 of 20 ended" in out
    assert str(mill.dataset(ended)) in out


def test_list_has_every_job_newest_first(mill: Mill, ended: str) -> None:
    newest = submit(mill, "newest", 3, model="nobody")
    listed = mill.call("list", "--json").ok().json
    ids = [status["id"] for status in listed]

    assert {name.removesuffix(".json") for name in mill.job_files()} == set(ids)
    assert ids[0] == newest
    assert next(status for status in listed if status["id"] == ended) == mill.status(ended)
    assert ended in mill.call("list").ok().out


def test_watch_ends_with_the_job_and_prints_where_its_results_are(mill: Mill) -> None:
    job = submit(mill, "watched", 60)
    done = mill.call("watch", job).ok()

    assert done.out == f"{mill.dataset(job)}\n"
    assert "60/60 rows" in done.err
    assert mill.call("watch", job, "--json").ok().json == mill.status(job)


def test_a_paused_job_stays_and_a_resumed_one_ends(mill: Mill) -> None:
    with mill.held(batch=2):
        job = submit(mill, "paused", 200, "--max-tokens", "32")
        paused = mill.call("pause", job, "--json").ok().json
    quiet = mill.wait_for(job, "paused")
    while (running := mill.status(job))["batches"]["running"]:
        time.sleep(0.1)
    time.sleep(1.5)

    assert paused["status"] == quiet["status"] == "paused"
    assert mill.status(job)["rows"]["completed"] == running["rows"]["completed"] < 200
    assert mill.call("resume", job, "--json").ok().json["status"] == "in_progress"
    assert mill.wait_for(job, "completed")["rows"]["completed"] == 200


def test_priority_is_shown_and_out_of_range_refused(mill: Mill) -> None:
    job = submit(mill, "weighed", 3, model="nobody")

    assert mill.call("priority", job, "4", "--json").ok().json["priority"] == 4
    assert mill.call("priority", "--json", job, "--", "-5").ok().json["priority"] == -5
    assert mill.call("priority", job, "6").code == 2


def test_cancelling_a_waiting_job_gives_every_row_without_a_worker(mill: Mill) -> None:
    job = submit(mill, "never", 12, "--n", "2", model="nobody")
    mill.call("cancel", job).ok()
    status = mill.wait_for(job, "cancelled")

    assert status["rows"] == {"total": 24, "completed": 0, "failed": 0, "cancelled": 24, "expired": 0}
    assert mill.table(job)["status"].to_pylist() == ["cancelled"] * 24
    assert mill.call("watch", job).code == 1


def test_cancelling_a_running_job_keeps_finished_rows(mill: Mill) -> None:
    with mill.held(batch=2):
        job = submit(mill, "halfway", 300, "--max-tokens", "100")
        mill.wait_for_rows(job, 5)
        mill.call("cancel", job).ok()
    rows = mill.wait_for(job, "cancelled")["rows"]
    table = mill.table(job)

    assert rows["completed"] + rows["cancelled"] == rows["total"] == 300
    assert rows["completed"] >= 5
    assert rows["cancelled"] > 0
    assert table["row_index"].to_pylist() == list(range(300))
    by_status = table.group_by("status").aggregate([("text", "count")]).to_pydict()
    assert dict(zip(by_status["status"], by_status["text_count"], strict=True)) == {
        "ok": rows["completed"],
        "cancelled": 0,
    }


def test_cancelling_an_ended_job_changes_nothing(mill: Mill, ended: str) -> None:
    before = mill.status(ended)

    assert mill.call("cancel", ended, "--json").ok().json == before
    assert mill.call("pause", ended).code == 2
    assert mill.call("resume", ended).code == 2


def test_a_deadline_that_passes_ends_the_job_as_expired(mill: Mill) -> None:
    job = submit(mill, "late", 10, "--deadline", "1s", model="nobody")
    done = mill.call("watch", job)

    assert done.code == 1
    assert "ended expired" in done.err
    assert mill.status(job)["rows"]["expired"] == 10
    assert mill.table(job)["status"].to_pylist() == ["expired"] * 10


def test_the_command_without_arguments_shows_its_help_and_each_command_has_one(mill: Mill) -> None:
    commands = ("run", "check", "submit", "results", "list", "workers", "doctor", "priority", *COMMANDS)

    assert "Files of prompts in, Parquet datasets of generated text out" in mill.call("--help").ok().out
    for command in commands:
        assert "Example: promptmill " in mill.call(command, "-h").ok().out, command
