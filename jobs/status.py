"""How a job stands: what ``status --json`` prints."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from jobs.job_file import Retry
from jobs.spec import Frozen, Status


class RowCounts(Frozen):
    """Result rows by how they ended."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0

    @property
    def ended(self) -> int:
        return self.completed + self.failed + self.cancelled + self.expired


class BatchCounts(Frozen):
    total: int = 0
    done: int = 0
    running: int = 0


class TokenCounts(Frozen):
    prompt: int = 0
    completion: int = 0


class Running(Frozen):
    """What batches in hand have generated so far; not yet in the counts of rows and tokens."""

    rows: int = 0
    tokens: int = 0


class ServingWorker(Frozen):
    """A live worker that may claim a job; its rates are those of all its jobs."""

    id: str
    device: str
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0


class Rate(Frozen):
    rows_per_s: float = 0.0
    tokens_per_s: float = 0.0


class JobStatus(Frozen):
    """What ``status --json`` prints: docs/architecture.md and the tests hold its fields."""

    id: str
    status: Status
    model: str
    labels: dict[str, str]
    priority: int
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    deadline: datetime | None = None
    rows: RowCounts
    batches: BatchCounts
    tokens: TokenCounts = TokenCounts()
    running: Running = Running()
    #: Live workers that may claim the job: of its model, with the weights that it was begun with.
    workers: int = 0
    #: Who they are; the first few where they are many.
    serving: tuple[ServingWorker, ...] = ()
    rate: Rate = Rate()
    eta_s: float | None = None
    errors: dict[str, int] = Field(default_factory=dict)
    #: Why a job paused itself, failed, or waits for weights that no live worker has; None otherwise.
    reason: str | None = None
    #: Where the rows of a retry come from; None for other jobs.
    retry: Retry | None = None
    store: str
    results: str | None = None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
