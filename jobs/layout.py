"""Where each file of a job lives in the store. Pure functions; paths are relative to the store's root."""

from __future__ import annotations

import re

STORE_FILE = "_promptmill.json"
LOCAL_FILE = "_local.json"
#: The ids that stores are given.
STORE_ID = re.compile(r"[0-9a-f]{16}")
JOBS = "jobs"
STAGES = "data"
RESULTS = "results"
#: A stage is one folder: anything else in a record would name files that are none of the stage's.
STAGE_PATTERN = r"^[A-Za-z0-9_-]{1,100}$"

#: The ids that jobs/spec.py allows. Anything else in that folder is not ours, and no reason to stop.
_JOB = re.compile(rf"{JOBS}/([A-Za-z0-9_-]{{1,56}})\.json")
_WISH = re.compile(rf"{JOBS}/([A-Za-z0-9_-]{{1,56}})\.(cancel|expired|pin|deleted)\.json")
_RESULT = re.compile(r"results/job_id=([A-Za-z0-9_-]{1,56})/.*")
_PART = re.compile(r"part-(\d{5,})(?:\.(\d+))?\.parquet")


def job_file(job: str) -> str:
    """The job's immutable record; its existence is the job's acceptance."""
    return f"{JOBS}/{job}.json"


def cancel_file(job: str) -> str:
    """Put when a job is cancelled, so that the wish survives the loss of Redis."""
    return f"{JOBS}/{job}.cancel.json"


def expired_file(job: str) -> str:
    """Put when a job's deadline has passed, for the same reason."""
    return f"{JOBS}/{job}.expired.json"


def pin_file(job: str) -> str:
    """Put at the first claim of a job: which weights generate it, so that Redis may forget who began it."""
    return f"{JOBS}/{job}.pin.json"


def tombstone_file(job: str) -> str:
    """Left by delete: an id is never used twice."""
    return f"{JOBS}/{job}.deleted.json"


def job_of_file(path: str) -> str | None:
    """The job whose record ``path`` is, None for any other file."""
    match = _JOB.fullmatch(path)
    return match[1] if match else None


def mark_of_file(path: str) -> tuple[str, str] | None:
    """``(job, kind)`` of what lies beside a job's record: cancel, expired, pin or deleted; None for any other file."""
    match = _WISH.fullmatch(path)
    return (match[1], match[2]) if match else None


def job_of_result(path: str) -> str | None:
    """The job whose dataset ``path`` belongs to, None for any other file."""
    match = _RESULT.fullmatch(path)
    return match[1] if match else None


def stage_prefix(stage: str) -> str:
    return f"data/{stage}"


def stage_of(path: str) -> str | None:
    """The stage that a file belongs to, None for files of no stage."""
    folder, _, rest = path.partition("/")
    stage, separator, _ = rest.partition("/")
    return stage if folder == STAGES and separator else None


def input_prefix(stage: str) -> str:
    return f"data/{stage}/input"


def input_batch(stage: str, batch: int) -> str:
    """The input batch file: rendered requests and the source's own columns."""
    return f"{input_prefix(stage)}/batch-{batch:05d}.parquet"


def carried_prefix(stage: str) -> str:
    return f"data/{stage}/carried"


def carried_batch(stage: str, batch: int) -> str:
    """Beside the input of a retry's batch: the result rows that are carried over."""
    return f"data/{stage}/carried/batch-{batch:05d}.parquet"


def is_working_file(path: str) -> bool:
    """Whether ``path`` is of those that a job needs only until its dataset is whole: a part, or carried rows."""
    return batch_of_part(path) is not None or path.split("/")[2:3] == ["carried"]


def parts_prefix(stage: str) -> str:
    return f"data/{stage}/parts"


def part(stage: str, batch: int, generation: int = 0) -> str:
    """The results of one batch. ``generation`` counts the damaged files that were set aside before it."""
    suffix = f".{generation}" if generation else ""
    return f"data/{stage}/parts/part-{batch:05d}{suffix}.parquet"


def damaged_part(stage: str, batch: int, generation: int = 0) -> str:
    """A marker put beside a part that cannot be read: readers go on to the next generation."""
    return f"data/{stage}/parts/part-{batch:05d}.bad-{generation}"


def batch_of_part(path: str) -> tuple[int, int] | None:
    """``(batch, generation)`` of a part's path, None for any other file."""
    match = _PART.fullmatch(path.rsplit("/", 1)[-1])
    return (int(match[1]), int(match[2] or 0)) if match else None


def plan_file(stage: str) -> str:
    """The finalizer's plan: which rows go into which output file."""
    return f"data/{stage}/plan.json"


def results_prefix(job: str) -> str:
    """The dataset: one Hive partition for each job."""
    return f"results/job_id={job}"


def results_file(job: str, index: int) -> str:
    return f"results/job_id={job}/data-{index:05d}.parquet"


def manifest_file(job: str) -> str:
    return f"results/job_id={job}/_manifest.json"


def success_file(job: str) -> str:
    return f"results/job_id={job}/_SUCCESS"
