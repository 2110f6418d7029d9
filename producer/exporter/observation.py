"""What the exporter sees of a ledger at one moment, and what it has to remember for that."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from jobs.ledger import JobState, Ledger, WorkerInfo
from jobs.spec import Status
from producer.tend import ENDING

#: Live jobs that have series of their own, the oldest first: a Prometheus suffers from series without bound.
LISTED_JOBS = 200


@dataclass(slots=True)
class ModelFigures:
    """One model; all zero where nothing of it lives."""

    #: Batches that workers are needed for: those that can be claimed, those leased, and finalizations.
    backlog: int = 0
    #: Result rows that claimable jobs have yet to come to.
    rows: int = 0
    workers: int = 0
    slots: int = 0
    busy_slots: int = 0
    #: By status, of jobs that live or ended within 7 days.
    jobs: Counter[Status] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A live job, and for how many seconds it has not progressed; None while it is paused."""

    state: JobState
    still_s: float | None

    @property
    def rows(self) -> dict[str, int]:
        """Result rows by status, ``waiting`` those that there are none of yet."""
        state = self.state
        rows = {"ok": state.completed, "error": state.failed, "cancelled": state.cancelled, "expired": state.expired}
        return {**rows, "waiting": state.total - sum(rows.values())}


@dataclass(frozen=True, slots=True)
class Observation:
    """All that one look came to."""

    models: dict[str, ModelFigures]
    listed: list[ListedJob]
    live_jobs: int
    #: Jobs that wait for their dataset, or will.
    ending: list[str]
    #: Bytes; a maximum of 0 is none.
    used_memory: int
    max_memory: int


class Observer:
    """Looks at a ledger again and again. A model that it has met once, or was told of, stays listed."""

    def __init__(self, models: Iterable[str] = ()) -> None:
        self._models = set(models)
        #: Ended jobs do not change, and there may be very many: each is read once.
        self._ended: dict[str, tuple[str, Status]] = {}
        self._progress = Progress()

    def look(self, ledger: Ledger) -> Observation:
        """Raises RedisUnavailableError."""
        live, workers, server = ledger.jobs(ledger.job_ids("live")), ledger.workers(), ledger.ping()
        self._note_ended(ledger, [state for state in live if state.status.ended])
        # Oldest first. One that has ended since it was read is among the ended, and counts once.
        live = [state for state in reversed(live) if state.id not in self._ended]
        still = self._progress.look(live)
        return Observation(
            models=self._figures(live, workers),
            listed=[ListedJob(state, still.get(state.id)) for state in live[:LISTED_JOBS]],
            live_jobs=len(live),
            ending=[state.id for state in live if state.status in ENDING],
            used_memory=int(server["used_memory"]),
            max_memory=int(server["maxmemory"]),
        )

    def _note_ended(self, ledger: Ledger, just_ended: list[JobState]) -> None:
        known, listed = self._ended, ledger.job_ids("ended")
        read = [*just_ended, *ledger.jobs(job for job in listed if job not in known)]
        known.update((state.id, (state.model, state.status)) for state in read)
        self._ended = {job: known[job] for job in {*listed, *(state.id for state in just_ended)} if job in known}

    def _figures(self, live: list[JobState], workers: list[WorkerInfo]) -> dict[str, ModelFigures]:
        ended = self._ended.values()
        self._models |= {model for model, _ in ended}
        self._models |= {state.model for state in live} | {worker.model for worker in workers}
        found = {model: ModelFigures() for model in sorted(self._models)}
        for model, status in ended:
            found[model].jobs[status] += 1
        for state in live:
            figures = found[state.model]
            figures.jobs[state.status] += 1
            figures.backlog += backlog(state)
            if state.status is Status.IN_PROGRESS:
                figures.rows += state.total - state.completed - state.failed - state.cancelled - state.expired
        for worker in workers:
            figures = found[worker.model]
            figures.workers += 1
            figures.slots += worker.slots
            figures.busy_slots += worker.in_hand
        return found


def backlog(state: JobState) -> int:
    """Batches of a live job that a worker is needed for, its finalization among them."""
    if state.status is Status.IN_PROGRESS:
        return state.batches - state.done
    if state.status is Status.PAUSED:
        return state.running
    return state.running or 1


class Progress:
    """For how long jobs have come no further.

    Further is a batch more, or more tokens in the batches that run than there were since the last one was done: a
    batch that ends its workers again and again begins anew each time, and comes no further.
    """

    def __init__(self) -> None:
        #: job -> status, batches done, most tokens in hand, since when.
        self._marks: dict[str, tuple[Status, int, int, float]] = {}

    def look(self, live: list[JobState]) -> dict[str, float]:
        """Seconds by job, but for paused ones. A job that is met for the first time has just progressed."""
        now, marks = time.monotonic(), {}
        for state in live:
            status, done, tokens, since = self._marks.get(state.id, (None, -1, 0, now))
            if status is not state.status or done != state.done or state.running_tokens > tokens:
                tokens, since = state.running_tokens, now
            marks[state.id] = (state.status, state.done, tokens, since)
        self._marks = marks
        return {job: now - since for job, (status, _, _, since) in marks.items() if status is not Status.PAUSED}
