"""Rows that cannot be generated are error rows; their neighbours, their batch and their job go on."""

from __future__ import annotations

import json

import pytest

from tests.mill import Mill

#: The model's context is 128 tokens; this is several times that.
TOO_LONG = "the lamp is warm and quiet " * 60


@pytest.fixture(scope="module")
def job(mill: Mill) -> str:
    rows = [
        {"prompt": "a good row"},
        {"prompt": TOO_LONG},
        {"messages": [{"role": "user", "content": "the model has no chat template"}]},
        {"prompt": "another good row"},
    ]
    source = mill.write("failing.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = mill.call("submit", source, "--model", "tiny", "--max-tokens", "4", "--wait")
    assert done.code == 1, "failed rows are a failure unless they are allowed"
    assert "2 failed rows" in done.err
    return done.out.strip()


def test_a_row_that_fails_says_why_and_its_neighbours_are_fine(mill: Mill, job: str) -> None:
    rows = mill.table(job).to_pylist()

    assert [row["status"] for row in rows] == ["ok", "error", "error", "ok"]
    assert [row["error_code"] for row in rows] == [None, "prompt_too_long", "tokenizer_error", None]
    assert [row["finish_reason"] for row in rows[1:3]] == ["error", "error"]
    assert "at most 127" in rows[1]["error_message"], "one token of the context is for the answer"
    assert "chat template" in rows[2]["error_message"]
    assert all(row["text"] is None for row in rows[1:3])
    assert all(row["text"] for row in (rows[0], rows[3]))


def test_the_job_is_completed_and_counts_its_errors(mill: Mill, job: str) -> None:
    status = mill.status(job)

    assert status["status"] == "completed"
    assert status["errors"] == {"prompt_too_long": 1, "tokenizer_error": 1}
    assert (status["rows"]["completed"], status["rows"]["failed"]) == (2, 2)


def test_failed_rows_are_allowed_where_asked(mill: Mill, job: str) -> None:
    assert mill.call("watch", job).code == 1
    assert mill.call("watch", job, "--allow-failed").code == 0


def test_bad_rows_that_are_skipped_become_error_rows_in_their_place(mill: Mill) -> None:
    lines = b'{"id": "a", "prompt": "fine"}\n{"id": "b"}\nnonsense\n{"id": "d", "prompt": "fine too", "n": 2}\n'
    flags = ("--skip-invalid", "--wait", "--allow-failed", "--max-tokens", "3")
    done = mill.call("submit", "-", "--model", "tiny", *flags, stdin=lines).ok()
    rows = mill.table(done.out.strip()).to_pylist()

    assert "stdin:2: " in done.err
    assert "stdin:3: " in done.err
    assert "2 bad rows go on as error rows" in done.err
    assert [(row["row_index"], row["sample_index"], row["status"], row["custom_id"]) for row in rows] == [
        (0, 0, "ok", "a"),
        (1, 0, "error", "b"),
        (2, 0, "error", None),
        (3, 0, "ok", "d"),
        (3, 1, "ok", "d"),
    ]
    assert {row["error_code"] for row in rows[1:3]} == {"invalid_row"}


def test_a_source_with_no_good_row_is_refused_even_then(mill: Mill) -> None:
    before = mill.job_files()
    done = mill.call("submit", "-", "--model", "tiny", "--skip-invalid", stdin=b"nonsense\n")

    assert (done.code, done.out) == (2, "")
    assert mill.job_files() == before


def test_a_job_that_only_fails_pauses_itself_and_says_why(mill: Mill) -> None:
    source = mill.write("hopeless.jsonl", (json.dumps({"prompt": TOO_LONG}) + "\n") * 300)
    job = mill.call("submit", source, "--model", "tiny", "--batch-size", "50").ok().out.strip()
    status = mill.wait_for(job, "paused")

    assert status["rows"]["failed"] >= 200
    assert "fail" in status["reason"]
    assert status["reason"] in mill.call("status", job).ok().out
    mill.call("cancel", job).ok()


def test_a_job_that_only_fails_pauses_itself_and_whoever_waits_is_told(mill: Mill) -> None:
    source = mill.write("hopeless.jsonl", "".join(json.dumps({"prompt": TOO_LONG}) + "\n" for _ in range(900)))
    flags = ("--model", "tiny", "--batch-size", "100", "--wait")
    waited = mill.call("submit", source, *flags)
    job = waited.out.strip()

    assert waited.code == 1
    assert f"job {job} has paused itself" in waited.err
    assert "prompt_too_long" in waited.err
    assert f"promptmill resume {job}" in waited.err
    status = mill.status(job)
    assert status["status"] == "paused"
    assert 200 <= status["rows"]["failed"] < 900

    assert mill.call("cancel", job).code == 0
    ended = mill.wait_for(job, "cancelled")
    assert ended["rows"]["failed"] + ended["rows"]["cancelled"] == 900
