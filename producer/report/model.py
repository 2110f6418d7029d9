"""The figures of a report, as ``report --json`` prints them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from jobs.job_file import JobFile
from jobs.status import JobStatus


@dataclass(frozen=True, slots=True)
class Bin:
    """Values from ``low`` up to, but without, ``high``; None is no bound."""

    low: int
    high: int | None
    rows: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long something is, in tokens. Quantiles are nearest-rank: each is a length that occurs."""

    count: int = 0
    total: int = 0
    least: int = 0
    median: int = 0
    p95: int = 0
    most: int = 0
    bins: tuple[Bin, ...] = ()

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class Interval:
    """Result rows that were done, and the tokens generated for them, in one of a timeline's intervals."""

    rows: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Standstill:
    """A time in which no row was done; ``seconds`` of it."""

    start: datetime
    end: datetime
    seconds: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """When rows were done: equal intervals of ``interval_s`` seconds from ``start`` on."""

    start: datetime
    end: datetime
    interval_s: float
    intervals: tuple[Interval, ...]
    standstills: tuple[Standstill, ...] = ()


@dataclass(frozen=True, slots=True)
class SampleRow:
    """A row that failed."""

    row_index: int
    sample_index: int
    custom_id: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Failures:
    """The rows that failed with one code, and the first of them."""

    code: str
    rows: int
    samples: tuple[SampleRow, ...]


@dataclass(frozen=True, slots=True)
class WorkerShare:
    """What one worker did; its rates are over the time from its first batch to its last row."""

    worker: str
    rows: int
    tokens: int
    first: datetime
    last: datetime
    rows_per_s: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What the result rows say. ``ends`` counts rows by finish reason, or by status where there is none."""

    rows: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    prompt_lengths: Lengths = Lengths()
    completion_lengths: Lengths = Lengths()
    timeline: Timeline | None = None
    #: Seconds from the begin of the first batch to the last row; the rates are over these.
    generating_s: float = 0.0
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0
    failures: tuple[Failures, ...] = ()
    workers: tuple[WorkerShare, ...] = ()
    revisions: tuple[str, ...] = ()
    #: Rows of batches that were claimed more than once.
    repeated: int = 0
    #: Rows that were done before the job was submitted: a retry takes them over. They have no part in the timeline.
    carried: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """A job, its figures, and its files. ``partial`` is one whose dataset is not whole (yet)."""

    made_at: datetime
    status: JobStatus
    job: JobFile
    partial: bool
    figures: Figures
    #: Of the manifest; empty until there is one.
    engine: dict[str, Any] = field(default_factory=dict)
    files: tuple[dict[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Everything that the page shows."""
        return {
            "version": 1,
            "made_at": self.made_at,
            "partial": self.partial,
            "status": self.status.to_json(),
            **asdict(self.figures),
            "engine": self.engine,
            "files": list(self.files),
            "spec": self.job.spec.model_dump(mode="json"),
            "digest": self.job.digest,
            "source_columns": [column.name for column in self.job.columns],
        }
