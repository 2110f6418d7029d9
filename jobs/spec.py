"""What is asked for: the parameters of a job, the words for its states, and why a row has no text."""

from __future__ import annotations

import hashlib
import os
import re
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

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

from jobs.errors import InputError

_MODEL_NAME = re.compile(r"[A-Za-z0-9._/:@+-]{1,200}")
#: Characters of a job's id at most.
MAX_JOB_ID = 56
_JOB_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_JOB_ID}}}")

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
