"""``results``: where a dataset is, and its rows in one file of any format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

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
    assert done.json == {"id": job, "to": str(target), "rows": 2 * ROWS}


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
    assert [row["custom_id"] for row in rows[::2]] == [f"export-{number}" for number in range(ROWS)]


def test_openai_export_has_a_line_for_each_prompt_with_its_samples_as_choices(
    mill: Mill, job: str, tmp_path: Path
) -> None:
    target = tmp_path / "copy.out"
    mill.call("results", job, "--to", str(target), "--format", "openai").ok()
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    table = mill.table(job)

    assert [line["custom_id"] for line in lines] == [f"export-{number}" for number in range(ROWS)]
    body = lines[3]["response"]["body"]
    assert [choice["message"]["content"] for choice in body["choices"]] == table["text"].to_pylist()[6:8]
    assert body["usage"]["prompt_tokens"] == table["prompt_tokens"][6].as_py()
    assert all(line["error"] is None for line in lines)


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
    job = mill.call("submit", source, "--model", "tiny", *flags).ok().out.strip()
    mill.wait_for_rows(job, 10)
    mill.call("pause", job).ok()
    refused = mill.call("results", job)
    mill.call("results", job, "--partial", "--to", str(tmp_path / "some.jsonl")).ok()
    done = {json.loads(line)["row_index"] for line in (tmp_path / "some.jsonl").read_text().splitlines()}
    mill.call("resume", job).ok()

    assert refused.code == 1
    assert "has not ended" in refused.err
    assert 10 <= len(done) < 120
    assert all({first + step for step in range(10)} <= done for first in {10 * (index // 10) for index in done})
    assert mill.wait_for(job, "completed")["rows"]["completed"] == 120
    assert mill.table(job).num_rows == 120
