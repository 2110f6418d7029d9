"""Retrying, deleting and finding jobs at the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import duckdb
import pytest
from acceptance_work import submit

from jobs import layout
from tests.mill import Mill, rows_in_order
from tests.patience import PATIENCE_S

TOO_LONG = "the lamp is warm and quiet " * 60


def query(mill: Mill, sql: str, **jobs: str) -> list[tuple[Any, ...]]:
    """The answer of DuckDB; ``{name}`` in ``sql`` is the dataset of the job of that name."""
    named = {
        name: f"read_parquet('{mill.dataset(job)}/*.parquet', hive_partitioning=false)" for name, job in jobs.items()
    }
    return duckdb.sql(sql.format(**named)).fetchall()


def contents(mill: Mill, job: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in mill.dataset(job).iterdir()}


# -- retry.


@pytest.fixture
def cancelled(mill: Mill, request: pytest.FixtureRequest) -> str:
    """A job that was cancelled while it ran."""
    with mill.held(batch=2):
        job = submit(mill, request.node.name, 100, "--max-tokens", "40", "--n", "2", "--temperature", "1")
        mill.wait_for_rows(job, 10)
        mill.call("cancel", job).ok()
    assert mill.wait_for(job, "cancelled")["rows"]["cancelled"] > 0
    return job


def test_a_cancelled_job_is_made_whole_by_a_retry(mill: Mill, cancelled: str) -> None:
    before = contents(mill, cancelled)
    done = mill.call("retry", cancelled, "--cancelled", "--wait").ok()
    job = done.out.strip()
    status, parent = mill.status(job), mill.status(cancelled)
    ok = parent["rows"]["completed"]

    assert job == f"{cancelled}-r1"
    assert f"{200 - ok:,} rows to generate again, {ok:,} carried over" in done.err
    assert (status["status"], status["rows"]["completed"], status["batches"]["total"]) == ("completed", 200, 20)
    assert (status["retry"]["parent"], status["retry"]["statuses"]) == (cancelled, ["error", "cancelled"])
    assert (
        f"{cancelled}: generates {200 - ok:,} rows again (failed, cancelled), {ok:,} carried over"
        in mill.call("status", job).ok().out
    )
    carried = "select * from {parent} where status = 'ok' except select * from {child}"
    assert query(mill, carried, parent=cancelled, child=job) == [], "not one bit of a good row changes"
    made = "select status, count(*) from (select * from {child} except select * from {parent}) group by all"
    assert query(mill, made, parent=cancelled, child=job) == [("ok", 200 - ok)]
    assert contents(mill, cancelled) == before
    assert rows_in_order(mill.table(job)) == [(row, sample) for row in range(100) for sample in range(2)]


def test_the_same_retry_again_reports_the_one_that_ended(mill: Mill, cancelled: str) -> None:
    job = mill.call("retry", cancelled, "--cancelled", "--wait").ok().out.strip()
    again = mill.call("retry", cancelled, "--cancelled").ok()

    assert again.out.strip() == job
    assert f"`promptmill retry {job}` retries what failed there" in again.err


@pytest.fixture(scope="module")
def failing(mill: Mill) -> str:
    """A job whose rows 1 and 8 are too long for the model."""
    rows = [{"prompt": TOO_LONG if at in (1, 8) else f"a lamp {at}"} for at in range(15)]
    source = mill.write("too-long.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--model", "tiny", "--max-tokens", "4", "--batch-size", "5", "--wait", "--allow-failed")
    return mill.call("submit", source, *flags).ok().out.strip()


def test_rows_that_fail_again_are_failed_rows_of_the_retry(mill: Mill, failing: str) -> None:
    done = mill.call("retry", failing, "--wait")
    assert (done.code, done.out.strip()) == (1, f"{failing}-r1")
    assert "2 failed rows (prompt_too_long 2)" in done.err
    done = mill.call("retry", f"{failing}-r1", "--wait", "--allow-failed", "--json").ok()
    assert (done.json["id"], done.json["rows"]["failed"]) == (f"{failing}-r2", 2)
    assert done.json["retry"]["root"] == failing


def test_json_says_what_is_retried(mill: Mill, failing: str) -> None:
    found = mill.call("retry", failing, "--again", "--json").ok().json

    assert found == {
        "id": found["id"], "parent": failing, "rows": 15, "batches": 3, "retried": 2, "carried": 13, "refused": {},
        "store": str(mill.store_path), "existed": False, "ended": False,
    }  # fmt: skip


def test_nothing_to_retry_is_no_failure_and_names_the_job_itself(mill: Mill) -> None:
    job = submit(mill, "flawless", 5, "--wait")
    done = mill.call("retry", job, "--wait").ok()

    assert done.out.strip() == job
    assert f"nothing to retry in {job}" in done.err
    assert f"{job}-r1.json" not in mill.job_files()


def test_rows_that_were_not_asked_for_are_told(mill: Mill) -> None:
    job = submit(mill, "unrun", 5, model="nobody")
    mill.call("cancel", job).ok()
    done = mill.call("retry", job).ok()

    assert "5 cancelled rows stay as they are; --cancelled retries them too" in done.err
    assert done.out.strip() == job


def test_a_job_that_runs_cannot_be_retried(mill: Mill) -> None:
    job = submit(mill, "running", 5, model="nobody")
    done = mill.call("retry", job)

    assert (done.code, done.out) == (2, "")
    assert f"job {job} has not ended: `promptmill watch {job}` waits for that" in done.err


# -- delete.


def test_where_nobody_can_be_asked_a_deletion_wants_a_yes(mill: Mill) -> None:
    job = submit(mill, "kept", 5, "--wait")
    done = mill.call("delete", job)

    assert (done.code, done.out) == (2, "")
    assert "give --yes" in done.err
    assert mill.status(job)["status"] == "completed"


def test_a_deleted_job_is_gone(mill: Mill) -> None:
    job = submit(mill, "gone", 5, "--wait")
    stage = mill.record(job).stage
    found = mill.call("delete", job, "--yes", "--json").ok().json

    assert found["deleted"] is True
    assert found["id"] == job
    assert not mill.dataset(job).exists()
    assert stage not in mill.stages()
    assert mill.store.exists(layout.tombstone_file(job))
    assert job not in mill.call("list").ok().out
    assert mill.call("delete", job, "--yes").code == 0, "a deletion that was cut short is completed so"
    for command in ("status", "results", "retry", "watch"):
        done = mill.call(command, job)
        assert (done.code, "it was deleted" in done.err) == (2, True)
    with mill.redis() as client:
        assert list(client.scan_iter(f"*{job}*")) == []


def test_a_running_job_can_be_deleted_and_its_workers_go_on(mill: Mill) -> None:
    with mill.held(batch=2):
        job = submit(mill, "stopped", 200, "--max-tokens", "100")
        mill.wait_for_rows(job, 5)
        mill.call("delete", job, "--yes").ok()
    other = submit(mill, "goes-on", 10, "--wait")

    assert mill.status(other)["rows"]["completed"] == 10
    assert mill.processes[0].alive
    assert not mill.dataset(job).exists()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 1)])
def test_on_a_terminal_it_asks_first(mill: Mill, answer: str, code: int) -> None:
    job = submit(mill, f"asked-{answer}", 5, model="nobody")
    leader, follower = os.openpty()
    os.write(leader, f"{answer}\n".encode())
    asked = subprocess.run(
        [sys.executable, "-c", "from producer.cli import main; main()", "delete", job],
        stdin=follower, capture_output=True, env=mill.environment, cwd=mill.folder, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    for end in (leader, follower):
        os.close(end)

    assert f"Delete job {job} (in_progress, 5 rows) with its results from {mill.store_path}?" in asked.stderr.decode()
    assert asked.returncode == code
    assert (f"{job}.json" in mill.job_files()) == (answer == "n")


def test_without_redis_a_job_can_still_be_deleted(mill: Mill) -> None:
    job = submit(mill, "alone", 5, "--wait")
    done = mill.call("delete", job, "--yes", PROMPTMILL_REDIS_URL="redis://127.0.0.1:1/0").ok()

    assert "Redis at 127.0.0.1:1 cannot be reached" in done.err
    assert not mill.dataset(job).exists()
    assert job not in mill.call("list", "--json").ok().out, "although Redis has its summary still"


# -- list.


@pytest.fixture(scope="module")
def listed(mill: Mill) -> dict[str, str]:
    red = submit(mill, "red", 5, "--label", "team=red", "--label", "week=7", "--wait")
    blue = submit(mill, "blue", 5, "--label", "team=blue", model="nobody")
    return {"red": red, "blue": blue}


def ids(mill: Mill, *flags: str) -> list[str]:
    return [status["id"] for status in mill.call("list", "--json", *flags).ok().json]


def test_jobs_are_found_by_label_status_and_model(mill: Mill, listed: dict[str, str]) -> None:
    red, blue = listed["red"], listed["blue"]

    assert ids(mill, "--label", "team=red") == [red]
    assert ids(mill, "--label", "team=red", "--label", "week=8") == []
    assert red in ids(mill, "--status", "completed")
    assert blue not in ids(mill, "--status", "completed")
    assert {red, blue} <= set(ids(mill, "--status", "completed", "--status", "in_progress"))
    assert ids(mill, "--model", "nobody", "--label", "team=red") == []
    assert ids(mill, "--model", "nobody", "--label", "team=blue") == [blue]


def test_the_newest_jobs_are_found(mill: Mill, listed: dict[str, str]) -> None:
    everything = ids(mill)

    assert ids(mill, "--limit", "2") == everything[:2]
    assert ids(mill, "--since", "1h") == everything
    assert ids(mill, "--since", "2099-01-01T00:00:00Z") == []


def test_the_table_shows_labels(mill: Mill, listed: dict[str, str]) -> None:
    shown = mill.call("list", "--label", "team=red").ok().out.splitlines()

    assert shown[0].split() == ["job", "status", "model", "rows", "failed", "created", "(UTC)", "labels"]
    assert len(shown) == 2
    assert "team=red, week=7" in shown[1]
    assert "is such a one" in mill.call("list", "--label", "team=green").ok().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--status", "done"), "completed"),
        (("--label", "team"), "use KEY=VALUE"),
        (("--since", "lately"), "--since 'lately': use 90s, 30m, 6h, 2d"),
        (("--since", "2026-01-01T00:00:00"), "lacks its zone"),
        (("--limit", "0"), "--limit"),
    ],
)
def test_a_filter_that_makes_no_sense_exits_2(mill: Mill, flags: tuple[str, ...], said: str) -> None:
    done = mill.call("list", *flags)

    assert (done.code, done.out) == (2, "")
    assert said in done.err
