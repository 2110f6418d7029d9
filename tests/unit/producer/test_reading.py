"""Reading results: in the order of the input, what is finished of a job that runs, and only what is asked for."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import layout
from jobs.errors import DamagedFileError, InputError, JobNotCompletedError, UnknownJobError
from jobs.finalize import finalize
from jobs.job_file import JobFile
from jobs.parts import list_parts
from jobs.spec import Status
from jobs.store import Store
from producer.export import Exported, export, format_of
from producer.results import read_results
from tests.job_work import accept_job, dataset, flipped, memory_store, run_batches


@pytest.fixture(params=["remote", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return memory_store() if request.param == "remote" else Store.open(str(tmp_path / "store"), create=True)


def indexes(batches: Iterator[pa.RecordBatch]) -> list[int]:
    return [index for batch in batches for index in batch.column("row_index").to_pylist()]


def copied(store: Store, job: JobFile, target: str, form: str | None = None) -> Exported:
    return export(store, job.id, target, format_of(target, form))


def test_files_are_read_by_number_also_when_there_are_more_than_five_digits(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    finalize(store, job, Status.COMPLETED)
    whole = dataset(store, job.id)
    store.delete([layout.results_file(job.id, 0)])
    for number, first in ((9, 0), (99_999, 3), (100_000, 5), (1_000_000, 8)):
        out = io.BytesIO()
        pq.write_table(whole.slice(first, {0: 3, 3: 2, 5: 3, 8: 2}[first]), out)
        assert store.put_if_absent(layout.results_file(job.id, number), out.getvalue())

    assert indexes(read_results(store, job.id)) == list(range(10))


def test_a_job_that_runs_has_the_rows_of_its_finished_batches(store: Store) -> None:
    job = accept_job(store, rows=40)
    run_batches(store, job, [7, 0, 4])

    assert indexes(read_results(store, job.id, partial=True)) == [0, 1, 2, 3, 16, 17, 18, 19, 28, 29, 30, 31]
    with pytest.raises(JobNotCompletedError, match="--partial"):
        read_results(store, job.id)


def test_a_job_that_ends_while_its_parts_are_read_goes_on_from_its_dataset(store: Store) -> None:
    job = accept_job(store, rows=100)
    run_batches(store, job, [index for index in range(25) if index not in (1, 20)])
    rows = read_results(store, job.id, partial=True)
    first = [next(rows), next(rows)]
    run_batches(store, job, [1, 20])
    finalize(store, job, Status.COMPLETED)
    assert list_parts(store, job.stage) == {}

    found = indexes(iter([*first, *rows]))
    assert found == sorted(set(found))
    assert set(range(100)) - set(found) == {4, 5, 6, 7}  # passed by when its batch was not finished


def test_a_job_that_ends_before_its_parts_are_listed_is_read_whole(store: Store) -> None:
    job = accept_job(store)
    run_batches(store, job)
    rows = read_results(store, job.id, partial=True)
    finalize(store, job, Status.COMPLETED)

    assert indexes(rows) == list(range(10))


def test_a_part_that_cannot_be_read_is_left_out_while_the_job_runs(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    job = accept_job(store)
    parts = run_batches(store, job)
    content = store.get(parts[1].path)
    store.delete([parts[1].path])
    store.put_if_absent(parts[1].path, flipped(content, len(content) // 2))

    assert indexes(read_results(store, job.id, partial=True)) == [0, 1, 2, 3, 8, 9]
    assert f"{parts[1].path} is left out" in caplog.text


def test_a_job_that_is_deleted_while_it_is_read_is_said_to_be_unknown(store: Store) -> None:
    job = accept_job(store, rows=100)
    run_batches(store, job)
    rows = read_results(store, job.id, partial=True)
    next(rows)
    store.delete([layout.job_file(job.id), *list_parts(store, job.stage).values()])

    with pytest.raises(UnknownJobError):
        list(rows)


def test_a_damaged_dataset_is_said_to_be_damaged(store: Store, tmp_path: Path) -> None:
    job = ended(store)
    path = layout.results_file(job.id, 0)
    content = store.get(path)
    store.delete([path])
    store.put_if_absent(path, content[:-20])

    with pytest.raises(DamagedFileError, match=r"data-00000\.parquet cannot be read"):
        copied(store, job, str(tmp_path / "copy.csv"))
    assert not (tmp_path / "copy.csv").exists()


def test_columns_and_statuses_can_be_chosen(store: Store) -> None:
    job = ended(store)
    (batch,) = read_results(store, job.id, columns=["text", "sku"])

    assert batch.schema.names == ["text", "sku"]
    assert sum(batch.num_rows for batch in read_results(store, job.id, status="ok", columns=["sku"])) == 10
    assert sum(batch.num_rows for batch in read_results(store, job.id, status="error", columns=["sku"])) == 0
    with pytest.raises(InputError, match=r"no column 'txt', did you mean 'text'\?"):
        read_results(store, job.id, columns=["txt"])
    with pytest.raises(InputError, match="none twice"):
        read_results(store, job.id, columns=["sku", "sku"])


def ended(store: Store) -> JobFile:
    job = accept_job(store)
    run_batches(store, job)
    finalize(store, job, Status.COMPLETED)
    return job


@pytest.mark.parametrize("name", ["copy.jsonl.gz", "copy.csv.gz", "copy.jsonl.zst", "copy.tsv.zst", "copy.NDJSON.GZ"])
def test_a_packing_extension_packs_the_file(store: Store, tmp_path: Path, name: str) -> None:
    job = ended(store)
    copied(store, job, str(tmp_path / name))
    copied(store, job, str(tmp_path / "plain"), format_of(name, None))
    packed = (tmp_path / name).read_bytes()

    unpacked = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else pa.input_stream(
        pa.BufferReader(packed), compression="zstd"
    ).read()  # fmt: skip
    assert unpacked == (tmp_path / "plain").read_bytes()


def test_parquet_is_not_packed_twice() -> None:
    with pytest.raises(InputError, match=r"leave out \.gz"):
        format_of("copy.parquet.gz", None)


def test_an_export_replaces_a_file_and_leaves_nothing_else(store: Store, tmp_path: Path) -> None:
    job = ended(store)
    link, place = tmp_path / "link.jsonl", tmp_path / "copy.jsonl"
    place.write_text("old")
    link.symlink_to(place)
    copied(store, job, str(link))

    assert len(place.read_text().splitlines()) == 10
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "store") == ["copy.jsonl", "link.jsonl"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(place.stat().st_mode) == 0o666 & ~umask


def test_an_export_that_fails_leaves_the_file_that_was_there(store: Store, tmp_path: Path) -> None:
    job = ended(store)
    place = tmp_path / "copy.jsonl"
    place.write_text("old")

    whole = store.get(layout.results_file(job.id, 0))
    store.put_if_absent(layout.results_file(job.id, 1), whole[:-9])  # the rows before it are written
    with pytest.raises(DamagedFileError):
        copied(store, job, str(place))
    assert place.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir() if path.name != "store"] == ["copy.jsonl"]


def test_a_pipe_is_written_to_not_replaced(store: Store, tmp_path: Path) -> None:
    job = ended(store)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=copied, args=(store, job, str(pipe), "jsonl"))
    writer.start()
    lines = pipe.read_text().splitlines()
    writer.join()

    assert [json.loads(line)["row_index"] for line in lines] == list(range(10))
    assert pipe.is_fifo()


def test_the_error_file_of_an_earlier_export_does_not_stay(store: Store, tmp_path: Path) -> None:
    job = ended(store)
    (tmp_path / "out.errors.jsonl").write_text("{}")
    done = copied(store, job, str(tmp_path / "out.jsonl"), "openai")

    assert (done.rows, done.failed, done.errors) == (10, 0, None)
    assert not (tmp_path / "out.errors.jsonl").exists()
