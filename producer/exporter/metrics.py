"""The exporter's metrics: docs/monitoring.md lists them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.spec import Status
from producer.exporter.observation import LISTED_JOBS, ListedJob, ModelFigures, Observation


@dataclass(slots=True)
class Known:
    """What the exporter's threads last learned; a scrape reads this and asks nobody, so that it never waits."""

    ledger: Observation | None = None
    #: Bytes free on the disk of a local store, those below which workers claim nothing, and all there are.
    store_bytes: tuple[int, int, int] | None = None
    #: Whether each part answered in the last round.
    up: Callable[[], dict[str, bool]] = dict
    #: Seconds since the last round of upkeep that came to its end.
    sweep_age_s: Callable[[], float] = field(default=lambda: math.nan)


class ExporterCollector(Collector):
    """Writes down what is known. A part that has not answered yet has no series: 0 would be a claim."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily(
            "promptmill_up", "Whether Redis and the store answered in the last round.", labels=["part"]
        )
        for part, answered in self._known.up().items():
            up.add_metric([part], answered)
        yield up
        yield GaugeMetricFamily(
            "promptmill_sweep_age_seconds",
            "Seconds since this process last came through a round of upkeep, or since it started.",
            value=self._known.sweep_age_s(),
        )
        if self._known.store_bytes is not None:
            yield from _store(*self._known.store_bytes)
        seen = self._known.ledger
        if seen is not None:
            yield from _redis(seen)
            yield from _models(seen.models)
            yield from _jobs(seen)


def _store(free: int, least: int, size: int) -> Iterator[Metric]:
    yield GaugeMetricFamily("promptmill_store_free_bytes", "Bytes free on the disk of a local store.", value=free)
    yield GaugeMetricFamily(
        "promptmill_store_min_free_bytes", "Bytes free below which workers claim nothing.", value=least
    )
    yield GaugeMetricFamily("promptmill_store_size_bytes", "Bytes that the disk of a local store has.", value=size)


def _redis(seen: Observation) -> Iterator[Metric]:
    yield GaugeMetricFamily("promptmill_redis_used_memory_bytes", "Memory that Redis uses.", value=seen.used_memory)
    yield GaugeMetricFamily("promptmill_redis_max_memory_bytes", "Its maxmemory; 0 is none.", value=seen.max_memory)


def _models(models: dict[str, ModelFigures]) -> Iterator[Metric]:
    by_model: tuple[tuple[str, str, Callable[[ModelFigures], int]], ...] = (
        (
            "backlog_batches",
            "Batches that workers are needed for: claimable, leased, finalizations.",
            lambda m: m.backlog,
        ),
        ("backlog_rows", "Result rows that jobs in progress have yet to come to.", lambda m: m.rows),
        ("workers", "Live workers.", lambda m: m.workers),
        ("worker_slots", "Batches that live workers can have in hand.", lambda m: m.slots),
        ("worker_slots_used", "Batches that live workers have in hand.", lambda m: m.busy_slots),
    )
    for name, text, value in by_model:
        family = GaugeMetricFamily(f"promptmill_{name}", text, labels=["model"])
        for model, figures in models.items():
            family.add_metric([model], value(figures))
        yield family
    jobs = GaugeMetricFamily("promptmill_jobs", "Jobs that live or ended within 7 days.", labels=["model", "status"])
    for model, figures in models.items():
        for status in Status:
            jobs.add_metric([model, status], figures.jobs[status])
    yield jobs


def _jobs(seen: Observation) -> Iterator[Metric]:
    """Of each live job; the oldest ``LISTED_JOBS`` of them."""
    yield GaugeMetricFamily(
        "promptmill_unlisted_jobs",
        f"Live jobs without series of their own: only the {LISTED_JOBS} oldest have them.",
        value=seen.live_jobs - len(seen.listed),
    )
    # Not "job": that is what Prometheus calls a group of targets.
    labels = ["job_id", "model"]
    rows = GaugeMetricFamily(
        "promptmill_job_rows", "Result rows of a live job; waiting: not there yet.", labels=[*labels, "status"]
    )
    still = GaugeMetricFamily(
        "promptmill_job_progress_age_seconds",
        "Seconds since a live job that is not paused last came further.",
        labels=[*labels, "status"],
    )
    paused = GaugeMetricFamily("promptmill_job_paused_itself", "1: too many rows of the job failed.", labels=labels)
    for job in seen.listed:
        _job(job, rows, still, paused)
    yield from (rows, still, paused)


def _job(job: ListedJob, rows: GaugeMetricFamily, still: GaugeMetricFamily, paused: GaugeMetricFamily) -> None:
    state = job.state
    for status, count in job.rows.items():
        rows.add_metric([state.id, state.model, status], count)
    if job.still_s is not None:
        still.add_metric([state.id, state.model, state.status], job.still_s)
    elif state.reason:
        paused.add_metric([state.id, state.model], 1)
