"""The Python API, against the same worker as the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jobs.errors import InputError, JobConflictError, JobNotCompletedError, SourceError, UnknownJobError
from producer import Client, Job
from tests.mill import Mill


@pytest.fixture(scope="module")
def client(mill: Mill) -> Iterator[Client]:
    with Client(redis_url=mill.redis_url, store=mill.store_path) as client:
        yield client


def finished(job: Job) -> list[dict[str, object]]:
    """The rows of a job once it has ended."""
    assert job.wait(progress=False).status == "completed"
    rows: list[dict[str, object]] = job.results().to_table().to_pylist()
    return rows


def test_dicts_go_in_and_a_dataset_comes_out(client: Client) -> None:
    job = client.submit([{"prompt": "one", "k": 1}, {"prompt": "two", "k": 2}], model="tiny", max_tokens=3, n=2)
    rows = finished(job)

    assert [(row["prompt"], row["k"], row["sample_index"]) for row in rows] == [
        ("one", 1, 0), ("one", 1, 1), ("two", 2, 0), ("two", 2, 1)
    ]  # fmt: skip
    assert job.status().rows.completed == 4


def test_a_generator_is_read_once(client: Client) -> None:
    job = client.submit(({"prompt": f"generated {i}"} for i in range(10)), model="tiny", max_tokens=2, batch_size=4)

    assert [row["prompt"] for row in finished(job)] == [f"generated {i}" for i in range(10)]


def test_an_arrow_table_keeps_its_types(client: Client) -> None:
    table = pa.table({"title": ["lamp", "bag"], "price": pa.array([1.5, None], pa.float32()), "tags": [["a"], []]})
    job = client.submit(table, model="tiny", template="About {title}:", max_tokens=2)
    job.wait()
    found = job.results().to_table()

    assert found.select(["title", "price", "tags"]).equals(table)
    assert "prompt" not in found.schema.names


def test_data_frames_are_sources_and_readers(client: Client) -> None:
    frame = pd.DataFrame({"prompt": ["from pandas", "also"], "when": pd.to_datetime(["2026-01-01", "2026-02-01"])})
    job = client.submit(frame, model="tiny", max_tokens=2)
    job.wait()
    read = pl.from_arrow(job.results().to_table())

    assert isinstance(read, pl.DataFrame)
    assert read["prompt"].to_list() == ["from pandas", "also"]
    assert read["when"].dt.month().to_list() == [1, 2]
    columns = {"prompt": ["from polars"], "tags": [["a", "b"]], "kind": pl.Series(["x"], dtype=pl.Categorical)}
    polars = finished(client.submit(pl.DataFrame(columns), model="tiny", max_tokens=2))
    assert [(row["prompt"], row["tags"], row["kind"]) for row in polars] == [("from polars", ["a", "b"], "x")]


def test_a_path_is_a_source_and_the_same_work_is_the_same_job(client: Client, mill: Mill) -> None:
    path = mill.prompts("client-path", 3)
    job = client.submit(path, model="tiny", max_tokens=2)
    finished(job)

    assert client.submit(path, model="tiny", max_tokens=2).id == job.id
    assert client.submit(path, model="tiny", max_tokens=2, again=True).id == f"{job.id}-2"
    assert client.job(job.id).status() == job.status()
    assert job.id in {status.id for status in client.jobs()}
    assert mill.call("status", job.id, "--json").ok().json["id"] == job.id


def test_a_cancelled_job_does_not_count_as_completed(client: Client) -> None:
    job = client.submit([{"prompt": "never"}], model="nobody")
    with pytest.raises(JobNotCompletedError, match="has not ended"):
        job.results()
    job.cancel()
    with pytest.raises(JobNotCompletedError, match="ended cancelled"):
        job.wait()

    assert job.results().to_table()["status"].to_pylist() == ["cancelled"]


def test_failed_rows_raise_where_they_are_not_allowed(client: Client) -> None:
    job = client.submit([{"prompt": "word " * 500}, {"prompt": "fine"}], model="tiny", max_tokens=2)

    assert job.wait().rows.failed == 1
    with pytest.raises(JobNotCompletedError, match="prompt_too_long"):
        job.wait(allow_failed=False)


def test_mistakes_raise_errors_of_the_tree(client: Client, mill: Mill) -> None:
    before = mill.job_files()
    with pytest.raises(SourceError, match=r"rows:2: "):
        client.submit([{"prompt": "fine"}, {"prompt": 3}], model="tiny")
    with pytest.raises(InputError, match="max_token"):
        client.submit([{"prompt": "fine"}], model="tiny", max_token=3)
    with pytest.raises(InputError, match="temperature"):
        client.submit([{"prompt": "fine"}], model="tiny", temperature=-1.0)
    with pytest.raises(InputError, match="cannot read rows"):
        client.submit(7, model="tiny")
    with pytest.raises(UnknownJobError):
        client.job("job-that-never-was")
    client.submit([{"prompt": "mine"}], model="nobody", job_id="client-id")
    with pytest.raises(JobConflictError):
        client.submit([{"prompt": "other"}], model="nobody", job_id="client-id")

    assert mill.job_files() == sorted([*before, "client-id.json"])
