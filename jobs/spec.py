"""What a job is: its parameters, its record in the store, and the status that commands print."""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from jobs.errors import InputError, JobVersionError
from jobs.layout import STAGE_PATTERN

#: The version of a job's files that this program writes: the job file, its stage, its dataset. Raised by whatever a
#: program of the version before would misread or not know, be it one new field, in the jobs that have it. Workers leave
#: jobs of versions that they do not read to others (docs/operations.md, Upgrades).
JOB_VERSION = 2
#: And those that it reads.
JOB_VERSIONS: tuple[int, ...] = (2,)

_MODEL_NAME = re.compile(r"[A-Za-z0-9._/:@+-]{1,200}")
#: Characters of a job's id at most.
MAX_JOB_ID = 56
_JOB_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_JOB_ID}}}")
#: Names that become parts of paths: whoever forges a job's file must not lead us out of the store.
_NameOfJob = Annotated[str, Field(pattern=rf"^[A-Za-z0-9_-]{{1,{MAX_JOB_ID}}}$")]
_NameOfStage = Annotated[str, Field(pattern=STAGE_PATTERN)]

#: int64: what a seed column of the results can hold.
MAX_SEED = 2**63 - 1


_Model = TypeVar("_Model", bound=BaseModel)


class Status(StrEnum):
    """The state of a job. The last four are final."""

    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in _ENDED


_ENDED = frozenset({Status.COMPLETED, Status.CANCELLED, Status.EXPIRED, Status.FAILED})


class RowError(StrEnum):
    """Why a row has no text. docs/results.md describes each."""

    INVALID_ROW = "invalid_row"
    EMPTY_PROMPT = "empty_prompt"
    PROMPT_TOO_LONG = "prompt_too_long"
    TEMPLATE_ERROR = "template_error"
    TOKENIZER_ERROR = "tokenizer_error"
    BAD_PARAMETERS = "bad_parameters"
    OUT_OF_MEMORY = "out_of_memory"
    NUMERIC_ERROR = "numeric_error"
    POISON = "poison"
    INPUT_LOST = "input_lost"
    INTERNAL_ERROR = "internal_error"


def check_job_id(job: str) -> str:
    """``job`` itself if it may name a job. Raises InputError otherwise."""
    if not _JOB_ID.fullmatch(job):
        raise InputError(
            f"job id {job!r} is not allowed: use 1 to 56 letters, digits, '_' and '-' (for example 'copy-2026-11')"
        )
    return job


class Frozen(BaseModel):
    """What is written down once: no field changes, none is guessed, none is unknown."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


def _no_empty_stop(stop: tuple[str, ...]) -> tuple[str, ...]:
    if any(not text for text in stop):
        raise ValueError("a stop string must not be empty")
    return stop


class SamplingParams(Frozen):
    """How the text of a row is chosen. The names and meanings are those of OpenAI and transformers."""

    #: Tokens to generate at most.
    max_tokens: int = Field(default=256, ge=1, le=1_000_000)
    #: 0 is greedy.
    temperature: float = Field(default=0.0, ge=0.0, le=100.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    #: 0 is off.
    top_k: int = Field(default=0, ge=0, le=10_000_000)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, gt=0.0, le=100.0)
    #: Generation ends before the first of these; the text never contains it.
    stop: Annotated[
        tuple[Annotated[str, Field(max_length=1_000)], ...],
        Field(max_length=16, strict=False),
        AfterValidator(_no_empty_stop),
    ] = ()
    #: Generation ends with the first of these tokens; the text never contains it.
    stop_token_ids: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...], Field(max_length=64, strict=False)
    ] = ()
    #: None: a hash of job, row and sample.
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    #: Result rows for each prompt.
    n: int = Field(default=1, ge=1, le=1_000)
    logprobs: bool = False

    @model_serializer(mode="wrap")
    def _as_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that came after version 0.1.0 and are not used: jobs without them keep their ids."""
        content: dict[str, Any] = serialize(self)
        if not self.stop_token_ids:
            del content["stop_token_ids"]
        return content

    def with_overrides(self, overrides: dict[str, Any]) -> SamplingParams:
        """These parameters with a row's own values on top. Raises pydantic's ValidationError."""
        return SamplingParams.model_validate({**self.model_dump(), **overrides}) if overrides else self


class JobSpec(Frozen):
    """What is asked for, apart from the rows. All of it but the last group is part of the job's identity."""

    model: str = Field(min_length=1, max_length=200)
    sampling: SamplingParams = SamplingParams()
    #: The prompt template with its ``{field}``s, None where a column holds the prompt.
    template: str | None = None
    #: Render prompts as one user message through the model's chat template.
    chat: bool = False
    system: str | None = None

    priority: int = Field(default=0, ge=-5, le=5)
    labels: dict[str, str] = {}
    deadline: datetime | None = None
    batch_size: int = Field(default=256, ge=1, le=100_000)
    max_error_rate: float = Field(default=0.5, ge=0.0, le=1.0)

    def identity(self) -> bytes:
        """The canonical bytes of what makes two jobs the same work."""
        content = self.model_dump(
            mode="json", exclude={"priority", "labels", "deadline", "batch_size", "max_error_rate"}
        )
        return orjson.dumps(content, option=orjson.OPT_SORT_KEYS)


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
    errors: dict[str, int] = {}

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


def default_seed(job: str, row_index: int, sample: int) -> int:
    """The seed of a row that was given none: the same on every worker and after every restart."""
    key = f"{job}\0{row_index}\0{sample}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") & MAX_SEED


def now() -> datetime:
    """This machine's clock, UTC. Leases and deadlines go by the clock of Redis instead."""
    return datetime.now(UTC)


def split_model(model: str) -> tuple[str, str]:
    """``NAME=PATH_OR_ID`` as (name, path or id). A folder alone gets its own name, a hub id is its own name.

    Raises InputError.
    """
    name, separator, source = model.partition("=")
    if not separator:
        folder = Path(os.path.expanduser(model))
        name, source = (folder.resolve().name, model) if model and folder.is_dir() else (model, model)
    if not _MODEL_NAME.fullmatch(name) or not source:
        raise InputError(
            f"--model {model!r}: use NAME or NAME=PATH_OR_ID, for example copy=./my-model; "
            "names have 1 to 200 letters, digits and any of . _ - / : @ +"
        )
    return name, source


def validated(kind: type[_Model], given: dict[str, Any]) -> _Model:
    """``kind(**given)``. Raises InputError that names the flag at fault and what it allows."""
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        flag = "--" + str(first["loc"][0]).replace("_", "-")
        raise InputError(f"{flag} {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}") from error
