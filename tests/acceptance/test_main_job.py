"""Prompts in, Parquet out: through the command line, a worker process, and four readers of the dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tests.mill import Mill, rows_in_order
from tests.outcome import Outcome
from tests.patience import wait_until

ROWS = 40
COLUMNS = ["row_index", "sample_index", "custom_id", "status", "error_code", "error_message", "text",
           "finish_reason", "prompt_tokens", "completion_tokens", "mean_logprob", "seed", "model",
           "model_revision", "attempt", "worker", "started_at", "finished_at"]  # fmt: skip


def submit(mill: Mill, *arguments: str, stdin: bytes = b"") -> tuple[str, pa.Table]:
    """Submits to ``tiny``, waits, and reads back: the id and the rows."""
    done = mill.call("submit", *arguments, "--model", "tiny", "--max-tokens", "6", "--wait", stdin=stdin).ok()
    job = done.out.strip()
    return job, mill.table(job)


@pytest.fixture(scope="module")
def job(mill: Mill) -> str:
    """40 prompts with columns of every JSON type, three samples of each, in batches of 7."""
    rows = [
        {"id": f"row-{i}", "prompt": f"the bag number {i}", "whole": i, "real": i / 4, "flag": i % 2 == 0,
         "mixed": i if i % 2 else i + 0.5, "nested": {"at": [i]}, "note": None if i % 3 else f"note {i}",
         "text": f"own {i}"}
        for i in range(ROWS)
    ]  # fmt: skip
    source = mill.write("typed.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--n", "3", "--temperature", "1.5", "--logprobs", "--batch-size", "7", "--label", "kind=typed")
    return submit(mill, source, *flags)[0]


class Reads:
    """The dataset of ``job``, as each tool reads it, as plain rows."""

    @staticmethod
    def pyarrow(folder: Path) -> list[dict[str, Any]]:
        return list(ds.dataset(folder, partitioning="hive").to_table().sort_by("row_index").to_pylist())

    @staticmethod
    def pandas(folder: Path) -> list[dict[str, Any]]:
        frame = pd.concat(pd.read_parquet(file, dtype_backend="pyarrow") for file in folder.glob("*.parquet"))
        return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]

    @staticmethod
    def polars(folder: Path) -> list[dict[str, Any]]:
        return pl.read_parquet(folder / "*.parquet").to_dicts()

    @staticmethod
    def duckdb(folder: Path) -> list[dict[str, Any]]:
        with duckdb.connect() as connection:
            # Through Arrow: DuckDB's own fetch of times with a zone needs pytz.
            return connection.sql(f"SELECT * FROM read_parquet('{folder}/*.parquet')").to_arrow_table().to_pylist()


@pytest.mark.parametrize("tool", ["pyarrow", "pandas", "polars", "duckdb"])
def test_every_prompt_is_as_many_rows_as_it_has_samples_in_the_order_of_the_source(
    mill: Mill, job: str, tool: str
) -> None:
    rows = getattr(Reads, tool)(mill.dataset(job))

    assert [(row["row_index"], row["sample_index"]) for row in rows] == [
        (index, sample) for index in range(ROWS) for sample in range(3)
    ]
    assert {row["status"] for row in rows} == {"ok"}
    assert [row["custom_id"] for row in rows] == [f"row-{index}" for index in range(ROWS) for _ in range(3)]
    assert all(row["input_text"] == f"own {row['row_index']}" for row in rows)
    assert all(row["real"] == row["row_index"] / 4 for row in rows)
    assert all(row["flag"] is (row["row_index"] % 2 == 0) for row in rows)
    assert all(0 < row["completion_tokens"] <= 6 and row["mean_logprob"] < 0 for row in rows)
    assert len({row["text"] for row in rows}) > ROWS, "a model that always says the same would hide mix-ups"


def test_the_dataset_has_the_promised_columns_and_types(mill: Mill, job: str) -> None:
    schema = mill.table(job).schema

    own = ["id", "prompt", "whole", "real", "flag", "mixed", "nested", "note", "input_text"]
    assert schema.names == COLUMNS + own
    time = pa.timestamp("us", tz="UTC")
    types = {name: str(schema.field(name).type) for name in schema.names}
    assert types["row_index"] == types["seed"] == types["whole"] == "int64"
    assert types["sample_index"] == types["prompt_tokens"] == types["completion_tokens"] == "int32"
    assert types["mean_logprob"] == "float"
    assert types["real"] == types["mixed"] == "double"
    assert types["flag"] == "bool"
    assert types["nested"] == types["note"] == types["error_code"] == "string"
    assert schema.field("started_at").type == schema.field("finished_at").type == time


def test_samples_of_a_prompt_have_seeds_of_their_own(mill: Mill, job: str) -> None:
    assert len(set(mill.table(job)["seed"].to_pylist())) == ROWS * 3


def test_what_rows_have_in_common_is_computed_once_and_the_manifest_says_so(mill: Mill) -> None:
    template = "Write a short product description for the red canvas bag with two pockets, of number {k}, in one line."
    source = mill.write("alike.jsonl", "".join(json.dumps({"k": i % 12}) + "\n" for i in range(24)))
    job, table = submit(mill, source, "--template", template)

    engine = json.loads((mill.dataset(job) / "_manifest.json").read_bytes())["engine"]
    prompts, texts = table["prompt_tokens"].to_pylist(), table["text"].to_pylist()
    assert engine["repeated_rows"] == 12
    assert texts[:12] == texts[12:]
    assert engine["shared_prompt_tokens"] > 0
    assert engine["shared_prompt_tokens"] + engine["computed_prompt_tokens"] == sum(prompts[:12])


def test_a_row_ends_at_its_stop_token(mill: Mill) -> None:
    rows = [{"prompt": f"the bag number {i}"} for i in range(8)]
    source = mill.write("ends.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    _, whole = submit(mill, source)
    # Of a tokenizer of 400 tokens, the first 64: hardly a text of 48 tokens does without all of them.
    flags = [part for token in range(64) for part in ("--stop-token-id", str(token))]
    _, cut = submit(mill, source, *flags)

    assert set(cut["status"].to_pylist()) == {"ok"}
    pairs = list(zip(whole["text"].to_pylist(), cut["text"].to_pylist(), strict=True))
    assert all(long.startswith(short.removesuffix("\ufffd")) for long, short in pairs)
    assert sum(cut["completion_tokens"].to_pylist()) < sum(whole["completion_tokens"].to_pylist())
    assert "stop" in cut["finish_reason"].to_pylist()


def test_the_manifest_agrees_with_the_files(mill: Mill, job: str) -> None:
    folder = mill.dataset(job)
    manifest = json.loads((folder / "_manifest.json").read_bytes())

    assert (folder / "_SUCCESS").exists()
    assert manifest["status"] == "completed"
    assert manifest["rows"] == {"total": ROWS * 3, "completed": ROWS * 3, "failed": 0, "cancelled": 0, "expired": 0}
    assert sum(file["rows"] for file in manifest["files"]) == mill.table(job).num_rows
    assert {file["path"] for file in manifest["files"]} == {path.name for path in folder.glob("*.parquet")}
    parts = mill.store_path / "data" / mill.record(job).stage / "parts"
    wait_until("the parts to go, now that the dataset is whole", lambda: not list(parts.glob("*")))


def test_csv_rows_go_through_a_template_and_keep_their_text(mill: Mill) -> None:
    source = mill.write("products.csv", 'id,title,sku\na,Red "bag",007\nb,"Oak, lamp",010\n')
    check = mill.call("check", source, "--template", "Write {{{{ about {title}: {sku}", "--show", "2").ok()
    _, table = submit(mill, source, "--template", "Write about {title}:")

    assert 'Write {{ about Red "bag": 007' in check.out
    assert table["custom_id"].to_pylist() == ["a", "b"]
    assert table["title"].to_pylist() == ['Red "bag"', "Oak, lamp"]
    assert table["sku"].to_pylist() == ["007", "010"]
    assert "prompt" not in table.schema.names


def test_every_line_of_a_text_file_is_a_prompt(mill: Mill) -> None:
    source = mill.write("lines.txt", "\ufeffthe first\r\n\r\nthe second\nthe third")
    _, table = submit(mill, source)

    assert table["prompt"].to_pylist() == ["the first", "the second", "the third"]
    assert table["custom_id"].null_count == 3
    assert rows_in_order(table) == [(0, 0), (1, 0), (2, 0)]


def test_stdin_is_a_source(mill: Mill) -> None:
    lines = b'{"prompt": "from a pipe"}\n{"prompt": "and one more"}\n'
    _, table = submit(mill, "-", stdin=lines)

    assert table["prompt"].to_pylist() == ["from a pipe", "and one more"]


def test_byte_order_mark_crlf_and_blank_lines_are_no_errors(mill: Mill) -> None:
    _, table = submit(mill, "-", stdin=b'\xef\xbb\xbf{"prompt": "one"}\r\n\r\n   \r\n{"prompt": "two"}\r\n')

    assert table["prompt"].to_pylist() == ["one", "two"]


def test_a_glob_reads_its_files_one_after_the_other(mill: Mill) -> None:
    for part in "ab":
        mill.write(f"glob-{part}.jsonl", f'{{"prompt": "file {part}", "part": "{part}"}}\n' * 2)
    _, table = submit(mill, str(mill.folder / "glob-*.jsonl"))

    assert table["part"].to_pylist() == ["a", "a", "b", "b"]


def test_rows_may_have_sampling_settings_of_their_own(mill: Mill) -> None:
    rows = [{"prompt": "one lamp", "max_tokens": 1}, {"prompt": "one lamp", "n": 2}, {"prompt": "one lamp"}]
    _, table = submit(mill, "-", stdin="".join(json.dumps(row) + "\n" for row in rows).encode())

    assert rows_in_order(table) == [(0, 0), (1, 0), (1, 1), (2, 0)]
    assert table["completion_tokens"].to_pylist()[0] == 1
    assert len(set(table["text"].to_pylist()[1:])) == 1, "greedy samples of one prompt are the same"


def test_columns_can_be_dropped(mill: Mill) -> None:
    _, table = submit(mill, "-", "--drop-columns", "secret", stdin=b'{"prompt": "a", "secret": 1, "kept": 2}\n')

    assert table.schema.names[len(COLUMNS) :] == ["prompt", "kept"]


# -- The same work, submitted again.


@pytest.fixture(scope="module")
def again_source(mill: Mill) -> str:
    return mill.prompts("again", 5)


@pytest.fixture(scope="module")
def again_job(mill: Mill, again_source: str) -> str:
    return submit(mill, again_source)[0]


def again(mill: Mill, source: str, *flags: str) -> Outcome:
    return mill.call("submit", source, "--model", "tiny", "--max-tokens", "6", "--wait", *flags)


def test_the_same_work_is_the_same_job_and_its_results_are_named(mill: Mill, again_source: str, again_job: str) -> None:
    second = again(mill, again_source).ok()

    assert second.out == again_job + "\n"
    assert str(mill.dataset(again_job)) in second.err
    assert "--again" in second.err
    assert again(mill, again_source, "--batch-size", "2", "--priority", "3").ok().out == again_job + "\n"


def test_bytes_that_mean_the_same_rows_are_the_same_job(mill: Mill, again_source: str, again_job: str) -> None:
    spaced = Path(again_source).read_text().replace(",", " , ").replace("\n", "\r\n\r\n")

    assert again(mill, mill.write("spaced.jsonl", spaced)).ok().out == again_job + "\n"


def test_again_runs_ended_work_anew_under_a_numbered_id(mill: Mill, again_source: str, again_job: str) -> None:
    third = again(mill, again_source, "--again").ok()

    assert third.out == f"{again_job}-2\n"
    assert mill.table(f"{again_job}-2")["text"] == mill.table(again_job)["text"]


def test_other_parameters_are_another_job(mill: Mill, again_source: str, again_job: str) -> None:
    assert again(mill, again_source, "--max-tokens", "5").ok().out != again_job + "\n"


def test_a_job_id_that_other_work_has_taken_is_refused(mill: Mill) -> None:
    first = mill.call("submit", mill.prompts("taken", 2), "--model", "tiny", "--job-id", "mine", "--max-tokens", "2")
    files, stages = mill.job_files(), mill.stages()
    second = mill.call("submit", mill.prompts("other", 2), "--model", "tiny", "--job-id", "mine", "--max-tokens", "2")

    assert first.ok().out == "mine\n"
    assert (second.code, second.out) == (2, "")
    assert "'mine' is taken by other work" in second.err
    assert (mill.job_files(), mill.stages()) == (files, stages)


# -- The command as people run it.


def test_stdout_holds_the_id_alone_and_stderr_the_progress(mill: Mill) -> None:
    done = mill.run("submit", mill.prompts("streams", 3), "--model", "tiny", "--max-tokens", "2", "--wait").ok()

    assert done.out.strip() in {path.removesuffix(".json") for path in mill.job_files()}
    assert done.out.count("\n") == 1
    assert "3/3 rows" in done.err


def test_submit_json_is_one_document_with_the_promised_fields(mill: Mill) -> None:
    done = mill.run("submit", mill.prompts("document", 3), "--model", "tiny", "--max-tokens", "2", "--json").ok()

    assert {"id", "rows", "batches", "invalid", "store"} <= set(done.json)
    assert (done.json["rows"], done.json["batches"], done.json["invalid"]) == (3, 1, 0)
    assert done.json["store"] == str(mill.store_path)
