"""The Python API, against the same worker as the command line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

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


def test_a_pandas_frame_goes_in_and_a_polars_frame_comes_out_with_the_same_types(client: Client) -> None:
    frame = pd.DataFrame(
        {
            "prompt": ["from pandas", "also", "too"],
            "when": pd.to_datetime(["2026-01-01 12:00", None, "2026-02-01 13:30"]).tz_localize("Europe/Berlin"),
            "kind": pd.Categorical(["a", None, "b"]),
            "count": pd.array([1, None, 3], "Int64"),
            "tags": [["x", "y"], [], None],
            "price": [1.5, float("nan"), 2.0],
        },
        index=[7, 8, 9],
    )
    job = client.submit(frame, model="tiny", max_tokens=2)
    job.wait()
    found = job.to_polars()

    assert found.columns[-6:] == list(frame.columns)  # the index has no name, and says nothing
    own = found.select(frame.columns)
    wanted = pl.from_arrow(pa.Table.from_pandas(frame, preserve_index=False))
    assert isinstance(wanted, pl.DataFrame)
    kind = pl.col("kind").cast(pl.String)  # categories may come back as what they are made of
    assert own.with_columns(kind).equals(wanted.with_columns(kind))
    assert own.drop("kind").schema == wanted.drop("kind").schema
    assert own.schema["when"] == pl.Datetime(own.schema["when"].time_unit, "Europe/Berlin")  # type: ignore[attr-defined]


def test_the_index_of_a_pandas_frame_is_a_column_where_it_has_a_name(client: Client) -> None:
    frame = pd.DataFrame({"prompt": ["one", "two"]}, index=pd.Index(["a", "b"], name="id"))
    job = client.submit(frame, model="tiny", max_tokens=2)
    job.wait()
    found = job.to_pandas(dtype_backend="pyarrow")

    assert found["custom_id"].to_list() == found["id"].to_list() == ["a", "b"]
    assert str(found["prompt_tokens"].dtype) == "int32[pyarrow]"
    assert str(job.to_pandas()["prompt_tokens"].dtype) == "int32"
    with pytest.raises(InputError, match="Arrow has no type for"):
        client.submit(pd.DataFrame({"prompt": ["a", "b"], "odd": [1, "x"]}), model="tiny")


def test_a_polars_frame_is_a_source_with_its_types(client: Client) -> None:
    frame = pl.DataFrame(
        {
            "prompt": ["from polars", "more"],
            "tags": [["a", "b"], None],
            "kind": pl.Series(["x", None], dtype=pl.Categorical),
            "size": [{"w": 1, "h": 2.5}, None],
            "when": pl.Series([1, None], dtype=pl.Datetime("ms", "UTC")),
        }
    )
    job = client.submit(frame, model="tiny", max_tokens=2)
    job.wait()

    assert job.to_polars().select(frame.columns).equals(frame)
    reader = frame.select("prompt").to_arrow().cast(pa.schema([("prompt", pa.string())])).to_reader()
    assert [row["prompt"] for row in finished(client.submit(reader, model="tiny", max_tokens=2))] == [
        "from polars",
        "more",
    ]


_MANY = """
import resource, sys
from producer import Client

def rows(count):
    for i in range(count):
        yield {"id": f"{count}-{i}", "prompt": f"{i} " * 200, "number": i}

peaks = []
with Client() as client:
    for count in (10_000, 100_000):
        job = client.submit(rows(count), model="nobody")
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        assert job.status().rows.total == count
print(*peaks)
"""


def test_a_generator_of_many_rows_is_not_held(mill: Mill) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _MANY], env=mill.environment, capture_output=True, text=True, check=True
    )
    few, many = map(int, done.stdout.split())

    assert (
        many - few < 40
    )  # MiB: 16 bytes a row to find ids that are there twice, and the allocator's; the rows are 110


def test_a_path_is_a_source_and_the_same_work_is_the_same_job(client: Client, mill: Mill) -> None:
    path = mill.prompts("client-path", 3)
    job = client.submit(path, model="tiny", max_tokens=2)
    finished(job)

    assert client.submit(path, model="tiny", max_tokens=2).id == job.id
    assert client.submit(path, model="tiny", max_tokens=2, again=True).id == f"{job.id}-2"
    assert client.job(job.id).status() == job.status()
    assert job.id in {status.id for status in client.jobs()}
    assert {status.model for status in client.jobs(model="tiny", status="completed")} == {"tiny"}
    assert client.jobs(labels={"no": "such"}) == []
    assert mill.call("status", job.id, "--json").ok().json["id"] == job.id


def test_a_cancelled_job_does_not_count_as_completed(client: Client) -> None:
    job = client.submit([{"prompt": "never"}], model="nobody")
    with pytest.raises(JobNotCompletedError, match="has not ended"):
        job.results()
    job.cancel()
    with pytest.raises(JobNotCompletedError, match="ended cancelled"):
        job.wait()

    assert job.results().to_table()["status"].to_pylist() == ["cancelled"]


def test_a_job_is_controlled_as_at_the_command_line(client: Client, mill: Mill) -> None:
    job = client.submit(
        [{"prompt": "held", "a": 1, "b": 2}], model="nobody", labels={"team": "control"}, keep_columns=["b"],
        deadline=timedelta(hours=6), stop="end",
    )  # fmt: skip

    assert job.pause().status == "paused"
    assert job.set_priority(3).priority == 3
    assert job.resume().status == "in_progress"
    (found,) = client.jobs(labels={"team": "control"})
    assert found.id == job.id
    assert found.deadline is not None
    assert timedelta(hours=5) < found.deadline - found.created_at <= timedelta(hours=6)
    record = mill.record(job.id)
    assert (record.spec.sampling.stop, [column.name for column in record.columns]) == (("end",), ["b"])
    job.cancel()
    with pytest.raises(InputError, match="can no longer be paused"):
        job.pause()


def test_results_can_be_taken_row_by_row_and_as_files(client: Client, tmp_path: Path) -> None:
    job = client.submit([{"prompt": f"taken {i}"} for i in range(6)], model="tiny", max_tokens=2, n=2, batch_size=4)
    job.wait()
    rows = list(job.iter_rows())

    assert [(row["row_index"], row["sample_index"]) for row in rows] == [(i, k) for i in range(6) for k in range(2)]
    assert job.export(tmp_path / "rows.csv", columns=["text"]).rows == 12
    assert pl.read_csv(tmp_path / "rows.csv").columns == ["text"]
    assert job.export(tmp_path / "out.jsonl", "openai").rows == 6
    assert list(client.submit([{"prompt": "none"}], model="nobody").iter_rows(partial=True)) == []


_INTERRUPTED = """
import os, signal, sys, threading, time, traceback
from producer import Client
from producer.watch import statuses

main = threading.main_thread().ident

def interrupt():
    while not any(frame.f_code is statuses.__code__ for frame, _ in traceback.walk_stack(sys._current_frames()[main])):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

job = Client().submit([{"prompt": "waits"}], model="nobody")
threading.Thread(target=interrupt).start()
job.wait()
"""


def test_ctrl_c_leaves_the_job_running_and_says_so_in_one_line(mill: Mill) -> None:
    script = [sys.executable, "-c", _INTERRUPTED]
    done = subprocess.run(script, env=mill.environment, capture_output=True, text=True, check=False)

    assert done.returncode == 130
    (line,) = done.stderr.splitlines()
    assert line.startswith("interrupted: the job goes on")
    job = re.search("job-[0-9a-f]{16}", line)
    assert job is not None
    assert mill.status(job[0])["status"] == "in_progress"


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
        client.submit([{"prompt": "fine"}], model="tiny", max_token=3)  # type: ignore[call-arg]
    with pytest.raises(InputError, match="temperature"):
        client.submit([{"prompt": "fine"}], model="tiny", temperature=-1.0)
    with pytest.raises(InputError, match="cannot read rows"):
        client.submit(7, model="tiny")
    with pytest.raises(InputError, match="lacks its zone"):
        client.submit([{"prompt": "fine"}], model="tiny", deadline=datetime(2126, 1, 1))
    with pytest.raises(InputError, match="already passed"):
        client.submit([{"prompt": "fine"}], model="tiny", deadline=timedelta(seconds=-1))
    with pytest.raises(InputError, match="exclude each other"):
        client.submit([{"prompt": "fine"}], model="tiny", keep_columns=["a"], drop_columns=["b"])
    with pytest.raises(InputError, match="is for paths"):
        client.submit([{"prompt": "fine"}], model="tiny", format="csv")
    with pytest.raises(UnknownJobError):
        client.job("job-that-never-was")
    client.submit([{"prompt": "mine"}], model="nobody", job_id="client-id")
    with pytest.raises(JobConflictError):
        client.submit([{"prompt": "other"}], model="nobody", job_id="client-id")

    assert mill.job_files() == sorted([*before, "client-id.json"])
