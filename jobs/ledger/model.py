"""What goes into and comes out of the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from jobs.job_file import JOB_VERSION, JOB_VERSIONS, Retry
from jobs.spec import Status

#: The two kinds of work that a claim hands out.
BATCH = "batch"
FINALIZE = "finalize"


class Release(StrEnum):
    """Why a lease is given back before its time."""

    #: For no fault of its batch: the next claim has it first.
    RELEASED = "released"
    #: Its run failed.
    FAILED = "failed"
    #: Its run took the process with it.
    CRASHED = "crashed"


class LeaseState(StrEnum):
    """What a heartbeat learns about each lease it holds."""

    #: Extended.
    HELD = "held"
    #: Another worker has the batch, or it is done: drop the work.
    LOST = "lost"
    #: Extended, but the job is being cancelled, or has expired: stop its rows and commit what there is.
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Claim:
    """One leased piece of work. ``batch`` is -1 for finalize.

    ``attempt`` starts at 1 and counts the claims of this batch; ``more`` says whether this worker could
    claim another batch at this moment. ``ending`` (finalize only) is the status that the job will end with.
    ``failures`` counts the earlier runs of this batch that were released as failed, not those handed back;
    ``expiries`` those that ended with their process, or whose lease expired. ``crashes`` says how many runs, one
    after the other, a row of the batch did not survive although it ran alone: by row_index.
    """

    kind: Literal["batch", "finalize"]
    job: str
    batch: int
    token: str
    attempt: int
    more: bool
    ending: Status = Status.COMPLETED
    failures: int = 0
    expiries: int = 0
    crashes: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Beat:
    """One lease in a heartbeat, with what its rows have come to so far."""

    job: str
    batch: int
    token: str
    rows: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer to ``finish``: whether this call was the first for the batch, and whether the job's
    last batch is now in (so that a finalize permit is due)."""

    first: bool
    finalize: bool


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a sweep did: ``(job, batch)`` of leases returned, jobs whose deadline passed, and for each
    model how many permits are missing."""

    returned: list[tuple[str, int]]
    expired: list[str]
    permits: dict[str, int]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a worker knows of its model, and how fast it was while it had work. Zero is "not known yet".

    Idleness changes nothing of it: what is asked of a fleet that rests is how fast it will be. Measured over the last
    half hour of work or so.
    """

    #: Tokens of prompt and output together that the engine takes.
    context: int = 0
    #: Characters of prompts for each of their tokens, whatever the tokenizer and the chat template add included.
    chars_per_token: float = 0.0
    #: The share of their max_tokens that rows have used.
    max_tokens_used: float = 0.0
    #: Result rows, and tokens of their prompts (those taken from other rows included) and outputs, each second.
    rows_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    tokens_per_s: float = 0.0
    #: When it last had work, seconds since the epoch by the worker's clock.
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker process as it registers itself. The fingerprint is the hash of the weights' identity, revision and
    dtype: a job stays with the fingerprint that first claimed one of its batches."""

    id: str
    model: str
    fingerprint: str
    host: str
    pid: int
    device: str
    dtype: str
    engine: str
    revision: str
    #: Batches it can have in hand at once.
    slots: int
    version: str
    started_at: float
    in_hand: int = 0
    #: Rows and output tokens since the last heartbeat.
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0
    shown: Shown = field(default_factory=Shown)
    #: The versions of jobs that its program reads.
    reads: tuple[int, ...] = field(default_factory=lambda: JOB_VERSIONS)


@dataclass(frozen=True, slots=True)
class JobState:
    """A job's state in the ledger. Times are Redis TIME, seconds since the epoch."""

    id: str
    status: Status
    model: str
    stage: str
    priority: int
    labels: dict[str, str]
    created_at: float
    started_at: float | None
    ended_at: float | None
    deadline: float | None
    total: int
    completed: int
    failed: int
    cancelled: int
    expired: int
    batches: int
    done: int
    running: int
    prompt_tokens: int
    completion_tokens: int
    rows_per_s: float
    tokens_per_s: float
    reason: str | None = None
    errors: dict[str, int] = field(default_factory=dict)
    #: Rows and tokens of running batches, from heartbeats; not yet in the counts above.
    running_rows: int = 0
    running_tokens: int = 0
    #: The weights that a live job was begun with; None before its first claim.
    fingerprint: str | None = None
    #: Where the rows of a retry come from.
    retry: Retry | None = None
    #: That of its files.
    version: int = JOB_VERSION
