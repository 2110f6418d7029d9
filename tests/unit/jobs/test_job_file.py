"""A job's record is read as it was written, and whatever is none is told from one of another version."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from jobs.errors import JobVersionError
from jobs.job_file import CarriedCounts, Column, JobFile, Retry, default_job_id
from jobs.spec import MAX_SEED, JobSpec, SamplingParams, check_job_id

WHEN = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)


def job_file(**changes: Any) -> JobFile:
    fields: dict[str, Any] = {
        "id": "copy-2026", "stage": "ab12", "created_at": WHEN,
        "spec": JobSpec(
            model="tiny", sampling=SamplingParams(stop=("\n", "END"), seed=MAX_SEED, n=2), template="About {title} é",
            system="Be brief", labels={"team": "a"}, deadline=WHEN + timedelta(hours=6), priority=-5,
        ),
        "digest": "f" * 64, "rows": 3, "result_rows": 6, "batches": 1, "invalid": 1, "max_tokens_total": 1536,
        "columns": (Column(source="text", name="input_text", encoding="json"), Column(source="id", name="id")),
        "producer_version": "0.1.0",
    }  # fmt: skip
    return JobFile(**{**fields, **changes})


def test_a_job_file_is_read_as_it_was_written() -> None:
    job = job_file()
    assert JobFile.from_bytes(job.to_bytes()) == job
    assert orjson.loads(job.to_bytes())["version"] == 2


def test_stop_tokens_are_read_as_they_were_written() -> None:
    stopping = JobSpec(model="tiny", sampling=SamplingParams(stop_token_ids=(7, 5)))
    assert JobFile.from_bytes(job_file(spec=stopping).to_bytes()).spec == stopping


def test_a_job_that_is_no_retry_has_the_bytes_that_it_had_before_there_were_retries() -> None:
    assert "retry" not in orjson.loads(job_file().to_bytes())
    assert job_file().seed_root == job_file().id


def test_the_record_of_a_retry_tells_its_line() -> None:
    line = Retry(parent="a-r1", root="a", statuses=("error",), retried=4, carried=CarriedCounts(completed=6), batches=2)
    job = job_file(retry=line, batches=10, max_tokens_total=100)
    assert JobFile.from_bytes(job.to_bytes()) == job
    assert job.seed_root == "a"
    assert job.batch_cost == 50.0, "only batches that will be claimed are charged"


@pytest.mark.parametrize(
    ("version", "mend"), [(1, "use the release that submitted it"), (3, "upgrade promptmill here")]
)
def test_a_job_file_of_another_version_is_left_to_programs_of_that_version(version: int, mend: str) -> None:
    record = orjson.loads(job_file().to_bytes())
    other = orjson.dumps({**record, "version": version, "a_later_field": 1})
    said = f"job {record['id']} is of version {version}, this program reads 2: {mend}"
    with pytest.raises(JobVersionError, match=f"^{said}$"):
        JobFile.from_bytes(other)


def test_a_field_that_came_later_is_no_damage() -> None:
    record = orjson.loads(job_file().to_bytes())
    record["spec"]["sampling"]["beams"] = 4
    with pytest.raises(JobVersionError, match=r"has spec\.sampling\.beams, which this program does not know: upgrade"):
        JobFile.from_bytes(orjson.dumps(record))
    record["rows"] = "many"
    with pytest.raises(ValidationError):
        JobFile.from_bytes(orjson.dumps(record))


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"{}", b"\xff", b'{"version": 2}', b'{"version": "2"}', b'{"version": true}']
)
def test_anything_else_is_no_job_file(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        JobFile.from_bytes(content)


def test_a_cut_job_file_is_no_job_file() -> None:
    content = job_file().to_bytes().rstrip()
    for length in range(0, len(content), 10):
        with pytest.raises(ValueError, match=r"."):
            JobFile.from_bytes(content[:length])


def test_the_default_id_is_made_of_the_digest_and_is_allowed() -> None:
    assert check_job_id(default_job_id("0123456789abcdef" * 4)) == "job-0123456789abcdef"
