"""The names of files in a store: dashboards and scripts read them, so they are written out here."""

from __future__ import annotations

import pytest

from jobs import layout


def test_the_names_are_those_that_the_documents_promise() -> None:
    assert layout.job_file("copy") == "jobs/copy.json"
    assert layout.cancel_file("copy") == "jobs/copy.cancel.json"
    assert layout.expired_file("copy") == "jobs/copy.expired.json"
    assert layout.pin_file("copy") == "jobs/copy.pin.json"
    assert layout.tombstone_file("copy") == "jobs/copy.deleted.json"
    assert layout.input_batch("s1", 7) == "data/s1/input/batch-00007.parquet"
    assert layout.part("s1", 42) == "data/s1/parts/part-00042.parquet"
    assert layout.part("s1", 42, 1) == "data/s1/parts/part-00042.1.parquet"
    assert layout.damaged_part("s1", 42) == "data/s1/parts/part-00042.bad-0"
    assert layout.plan_file("s1") == "data/s1/plan.json"
    assert layout.results_file("copy", 3) == "results/job_id=copy/data-00003.parquet"
    assert layout.manifest_file("copy") == "results/job_id=copy/_manifest.json"
    assert layout.success_file("copy") == "results/job_id=copy/_SUCCESS"


@pytest.mark.parametrize(("batch", "generation"), [(0, 0), (99_999, 0), (100_000, 0), (1_234_567, 12), (42, 1)])
def test_a_parts_name_tells_its_batch_and_generation(batch: int, generation: int) -> None:
    assert layout.batch_of_part(layout.part("s1", batch, generation)) == (batch, generation)


@pytest.mark.parametrize(
    "name", ["part-00042.bad-0", "part-42.parquet", "part-00042.parquet.tmp", "batch-00042.parquet"]
)
def test_no_other_file_is_taken_for_a_part(name: str) -> None:
    assert layout.batch_of_part(f"data/s1/parts/{name}") is None


def test_a_jobs_record_tells_the_job() -> None:
    assert layout.job_of_file(layout.job_file("copy-1_A")) == "copy-1_A"


@pytest.mark.parametrize(
    "path",
    [
        layout.cancel_file("copy"), layout.expired_file("copy"), layout.pin_file("copy"), layout.tombstone_file("copy"),
        "copy.json",
        "jobs/copy", "jobs/a/copy.json", "jobs/.json", "jobs/a b.json", "jobs/copy (1).json", f"jobs/{'x' * 57}.json",
    ],
)  # fmt: skip
def test_what_lies_beside_the_records_names_no_job(path: str) -> None:
    assert layout.job_of_file(path) is None
