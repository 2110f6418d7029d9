"""``results``: where a dataset is, and its rows in one file of any format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from tests.mill import Mill

ROWS = 12


@pytest.fixture(scope="module")
def job(mill: Mill) -> str:
    """12 prompts, two samples each, one column that a spreadsheet would take for a formula."""
    source = mill.prompts("export", ROWS, formula="=1+1")
    flags = ("--n", "2", "--max-tokens", "4", "--batch-size", "5", "--wait")
    return mill.call("submit", source, "--model", "tiny", *flags).ok().out.strip()


def test_results_prints_the_place_of_the_dataset_alone(mill: Mill, job: str) -> None:
    assert mill.call("results", job).ok().out == f"{mill.dataset(job)}\n"
    assert mill.call("results", job, "--json").ok().json == {"id": job, "results": str(mill.dataset(job))}


def test_parquet_export_equals_the_dataset(mill: Mill, job: str, tmp_path: Path) -> None:
    target = tmp_path / "copy.parquet"
    done = mill.call("results", job, "--to", str(target), "--json").ok()

    assert pq.read_table(target).equals(mill.table(job))
    assert done.json == {"id": job, "to": str(target), "rows": 2 * ROWS, "total": 2 * ROWS}


def test_jsonl_export_has_a_line_for_each_row(mill: Mill, job: str, tmp_path: Path) -> None:
    target = tmp_path / "copy.jsonl"
    done = mill.call("results", job, "--to", str(target)).ok()
    lines = [json.loads(line) for line in target.read_text().splitlines()]

    assert (done.out, done.err) == ("", f"24 rows written to {target}\n")
    assert [line["text"] for line in lines] == mill.table(job)["text"].to_pylist()
    assert [line["number"] for line in lines] == [number for number in range(ROWS) for _ in range(2)]


def test_csv_export_disarms_formulas(mill: Mill, job: str, tmp_path: Path) -> None:
    target = tmp_path / "copy.csv"
    mill.call("results", job, "--to", str(target)).ok()
    rows = list(csv.DictReader(io.StringIO(target.read_text(), newline="")))

    assert len(rows) == 2 * ROWS
    assert {row["formula"] for row in rows} == {"'=1+1"}
    assert ",=1+1," not in mill.call("results", job, "--format", "tsv").ok().out
    assert '"=1+1"' in mill.call("results", job, "--format", "csv", "--no-escape").ok().out
    assert [row["custom_id"] for row in rows[::2]] == [f"export-{number}" for number in range(ROWS)]


def request(name: str, kind: str, **body: Any) -> str:
    body = {"model": "gpt-4o-mini", "max_tokens": 4, **body}
    return json.dumps({"custom_id": name, "method": "POST", "url": f"/v1/{kind}", "body": body}) + "\n"


def test_openai_requests_come_back_as_an_output_file_and_an_error_file(mill: Mill, chatty: str, tmp_path: Path) -> None:
    lines = [
        request("chat", "chat/completions", messages=[{"role": "user", "content": "hello"}], n=2, temperature=1),
        request("too-long", "chat/completions", messages=[{"role": "user", "content": "word " * 900}]),
        request("prompt", "completions", prompt="the lamp"),
    ]
    job = mill.call("submit", mill.write("requests.jsonl", "".join(lines)), "--model", chatty).ok().out.strip()
    mill.wait_for(job, "completed")
    target, failed = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    done = mill.call("results", job, "--to", str(target), "--format", "openai").ok()
    (chat, prompt), (error,) = (
        [json.loads(line) for line in path.read_text().splitlines()] for path in (target, failed)
    )

    assert done.err == f"2 requests written to {target}, 1 that failed to {failed}\n"
    assert [line["custom_id"] for line in (chat, prompt, error)] == ["chat", "prompt", "too-long"]
    chats = ChatCompletion.model_validate(chat["response"]["body"], strict=True)
    texts = Completion.model_validate(prompt["response"]["body"], strict=True)
    table = mill.table(job)
    assert [choice.message.content for choice in chats.choices] == table["text"].to_pylist()[:2]
    assert [choice.text for choice in texts.choices] == table["text"].to_pylist()[3:]
    assert chats.usage is not None
    assert chats.usage.completion_tokens == sum(table["completion_tokens"].to_pylist()[:2])
    assert error["error"]["code"] == "prompt_too_long"

    printed = mill.call("results", job, "--to", "-", "--format", "openai").ok().out
    assert [json.loads(line)["custom_id"] for line in printed.splitlines()] == ["chat", "too-long", "prompt"]
    said = mill.call("results", job, "--to", f"{tmp_path}/", "--format", "openai", "--json").ok().json
    assert (said["rows"], said["failed"], said["total"]) == (3, 1, 3)
    assert said["errors"] == str(tmp_path / f"{job}.errors.jsonl")
    assert mill.call("results", job, "--format", "openai", "--status", "ok").code == 2


def test_columns_and_rows_can_be_chosen(mill: Mill, job: str) -> None:
    done = mill.call("results", job, "--columns", "custom_id, number", "--status", "ok", "--head", "3").ok()
    near = mill.call("results", job, "--columns", "nmber")

    assert [json.loads(line) for line in done.out.splitlines()] == [
        {"custom_id": "export-0", "number": 0}, {"custom_id": "export-0", "number": 0},
        {"custom_id": "export-1", "number": 1},
    ]  # fmt: skip
    assert mill.call("results", job, "--status", "error").ok().out == ""
    assert mill.call("results", job, "--status", "failed").code == 2
    assert (near.code, near.out) == (2, "")
    assert "did you mean 'number'?" in near.err


def test_head_prints_the_first_rows_as_json_lines(mill: Mill, job: str) -> None:
    done = mill.call("results", job, "--head", "3").ok()
    rows = [json.loads(line) for line in done.out.splitlines()]

    assert [(row["row_index"], row["sample_index"]) for row in rows] == [(0, 0), (0, 1), (1, 0)]


def test_head_as_json_is_one_array(mill: Mill, job: str) -> None:
    rows = mill.call("results", job, "--head", "2", "--json").ok().json

    assert [row["text"] for row in rows] == mill.table(job)["text"].to_pylist()[:2]
    assert mill.call("results", job, "--head", "2", "--json", "--format", "csv").code == 2


@pytest.mark.parametrize(("form", "ending"), [(None, "parquet"), ("csv", "csv"), ("openai", "jsonl")])
def test_a_folder_gets_a_file_named_for_the_job(
    mill: Mill, job: str, tmp_path: Path, form: str | None, ending: str
) -> None:
    flags = ("--format", form) if form else ()
    mill.call("results", job, "--to", f"{tmp_path}/new/", *flags).ok()
    mill.call("results", job, "--to", str(tmp_path), *flags).ok()

    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"{job}.{ending}"]
    assert (tmp_path / f"{job}.{ending}").is_file()


def test_a_folder_that_cannot_be_made_exits_2(mill: Mill, job: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = mill.call("results", job, "--to", f"{tmp_path}/file/")

    assert (done.code, done.out) == (2, "")
    assert "cannot be made" in done.err


def test_a_file_that_cannot_be_written_exits_2_and_leaves_nothing(mill: Mill, job: str, tmp_path: Path) -> None:
    done = mill.call("results", job, "--to", str(tmp_path / "no" / "copy.csv"))

    assert (done.code, done.out) == (2, "")
    assert "copy.csv cannot be written" in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_format_that_is_none_exits_2(mill: Mill, job: str) -> None:
    assert mill.call("results", job, "--to", "copy.xlsx").code == 2
    assert mill.call("results", job, "--to", "-", "--format", "parquet").code == 2


def test_a_job_that_is_paused_half_way_has_partial_results(mill: Mill, tmp_path: Path) -> None:
    source = mill.prompts("partial", 120)
    flags = ("--max-tokens", "64", "--batch-size", "10")
    with mill.held(batch=2):
        job = mill.call("submit", source, "--model", "tiny", *flags).ok().out.strip()
        mill.wait_for_rows(job, 10)
        mill.call("pause", job).ok()
    refused = mill.call("results", job)
    said = mill.call("results", job, "--partial", "--to", str(tmp_path / "some.jsonl")).ok().err
    printed = mill.call("results", job, "--partial", "--columns", "row_index").ok()
    done = {json.loads(line)["row_index"] for line in (tmp_path / "some.jsonl").read_text().splitlines()}
    mill.call("resume", job).ok()

    # A batch that was in hand may end between the two.
    assert printed.err == f"job {job} still runs: {len(printed.out.splitlines())} of 120 rows are finished\n"
    assert refused.code == 1
    assert "has not ended" in refused.err
    assert 10 <= len(done) < 120
    assert said.startswith(f"{len(done)} rows written to {tmp_path / 'some.jsonl'}; the job still runs: ")
    assert said.endswith(f": {len(done)} of 120 rows are finished\n")
    assert all({first + step for step in range(10)} <= done for first in {10 * (index // 10) for index in done})
    assert mill.wait_for(job, "completed")["rows"]["completed"] == 120
    assert mill.table(job).num_rows == 120
