"""The record of a job in the store: what was accepted, its rows and columns, and where a retry comes from."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from jobs.errors import JobVersionError
from jobs.layout import STAGE_PATTERN
from jobs.spec import MAX_JOB_ID, Frozen, JobSpec

#: The version of a job's files that this program writes: the job file, its stage, its dataset. Raised by whatever a
#: program of the version before would misread or not know, be it one new field, in the jobs that have it. Workers leave
#: jobs of versions that they do not read to others (docs/operations.md, Upgrades).
JOB_VERSION = 2
#: And those that it reads.
JOB_VERSIONS: tuple[int, ...] = (2,)

#: Names that become parts of paths: whoever forges a job's file must not lead us out of the store.
_NameOfJob = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_JOB_ID}}}$")]
_NameOfStage = Annotated[str, Field(pattern=STAGE_PATTERN)]

Encoding = Literal["typed", "int64", "float64", "bool", "string", "list", "json"]


class Column(Frozen):
    """One of the source's own columns, as it is staged and as it appears in the results."""

    #: The name in the source; in the staged file it is ``src:`` + this.
    source: str
    #: The name in the results: the same, or with the prefix ``input_`` after a clash.
    name: str
    #: ``typed``: staged with its Arrow type and kept. Others are staged as what each batch held and cast at commit.
    encoding: Encoding = "typed"
    #: The Arrow type in the results, as a base64 IPC schema of one field; for ``typed`` and ``list``.
    arrow: str | None = None


class CarriedCounts(Frozen):
    """The result rows that a retry took over, and their tokens: as in PartCounts."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: dict[str, int] = Field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.completed + self.failed + self.cancelled + self.expired


class Retry(Frozen):
    """Where the rows of a retry come from: those that it generates again and those that it carried over."""

    #: The job whose rows these are, and the first job of the line of retries.
    parent: _NameOfJob
    root: _NameOfJob
    #: The row statuses that are generated again.
    statuses: Annotated[tuple[Literal["error", "cancelled", "expired"], ...], Field(strict=False)]
    #: Result rows to generate.
    retried: int
    carried: CarriedCounts
    #: Batches with rows to generate; the others were accepted with their parts.
    batches: int


class JobFile(Frozen):
    """``jobs/<job>.json``: put once, never changed. That it exists is the acceptance of the job."""

    version: int = JOB_VERSION
    id: _NameOfJob
    stage: _NameOfStage
    created_at: datetime
    spec: JobSpec
    #: SHA-256 of the identity and all canonical rows, hex.
    digest: str
    #: Input rows; result rows (the sum of ``n``); batches.
    rows: int
    result_rows: int
    batches: int
    #: Rows that --skip-invalid let through as error rows.
    invalid: int = 0
    #: The sum of ``max_tokens`` over all samples to generate: what fair sharing charges.
    max_tokens_total: int
    columns: tuple[Column, ...] = Field(default=(), strict=False)
    producer_version: str = ""
    #: None for a job that is no retry.
    retry: Retry | None = None

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what only retries have: other jobs keep their bytes."""
        content: dict[str, Any] = serialize(self)
        if self.retry is None:
            del content["retry"]
        return content

    @property
    def seed_root(self) -> str:
        """The job by whose id default seeds are keyed: a row that is tried again has the seed that it had."""
        return self.id if self.retry is None else self.retry.root

    @property
    def batch_cost(self) -> float:
        """What fair sharing charges for a batch: its tokens at most, on average over those that will be claimed."""
        batches = self.batches if self.retry is None else self.retry.batches
        return max(self.max_tokens_total / max(batches, 1), 1.0)

    def batch_rows(self, batch: int) -> range:
        """The row indexes of a batch: all are full but the last."""
        first = batch * self.spec.batch_size
        return range(first, min(first + self.spec.batch_size, self.rows))

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, content: bytes) -> JobFile:
        """Raises JobVersionError, and ValueError (pydantic's ValidationError is one) for what is no job file."""
        record = orjson.loads(content)
        version = record.get("version") if isinstance(record, dict) else None
        if type(version) is not int:
            raise ValueError(f"job file version {version!r}")
        # Asked first: another version may have fields that this one does not know.
        if version not in JOB_VERSIONS:
            raise JobVersionError(_other_version(record.get("id"), version))
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            if any(problem["type"] != "extra_forbidden" for problem in error.errors()):
                raise
            fields = ", ".join(".".join(map(str, problem["loc"])) for problem in error.errors())
            raise JobVersionError(
                f"job {record.get('id')} has {fields}, which this program does not know: upgrade promptmill here"
            ) from error


def _other_version(job: object, version: int) -> str:
    known = ", ".join(map(str, JOB_VERSIONS))
    mend = "upgrade promptmill here" if version > max(JOB_VERSIONS) else "use the release that submitted it"
    return f"job {job} is of version {version}, this program reads {known}: {mend}"


def default_job_id(digest: str) -> str:
    """The id of a job that was given none: a prefix of its digest."""
    return f"job-{digest[:16]}"
