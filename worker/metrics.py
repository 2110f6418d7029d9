"""Prometheus metrics of one worker process; docs/monitoring.md lists them."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import REGISTRY, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from jobs.results import STATUS_COUNTS, PartCounts
from jobs.telemetry.exposition import Probes, ProcessCollector, serve
from worker.context import WorkerContext
from worker.engine.request import EngineStats

_ROWS = Counter("promptmill_rows", "Result rows committed by this process.", ["model", "status"])
_BATCH_SECONDS = Histogram(
    "promptmill_batch_seconds",
    "Seconds from a batch's claim to its commit.",
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800),
)


def observe_batch(model: str, counts: PartCounts, seconds: float) -> None:
    """Count one committed batch; rows that a retry carried over are another job's."""
    for status, name in STATUS_COUNTS.items():
        _ROWS.labels(model, status).inc(getattr(counts.generated, name))
    _BATCH_SECONDS.observe(seconds)


class EngineCollector(Collector):
    """Reads the engine's own counters at each scrape."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        stats, model = self._context.engine.stats(), self._context.model
        yield from _work(stats, model)
        yield from _state(stats, model)


def _work(stats: EngineStats, model: str) -> Iterator[Metric]:
    """What the engine did since it started."""
    tokens = CounterMetricFamily("promptmill_tokens", "Tokens run by this process.", labels=["model", "kind"])
    tokens.add_metric([model, "prompt"], stats.prompt_tokens)
    tokens.add_metric([model, "completion"], stats.completion_tokens)
    yield tokens
    shared = CounterMetricFamily(
        "promptmill_shared_prompt_tokens",
        "Of the prompt tokens, those taken from a row with the same beginning.",
        labels=["model"],
    )
    shared.add_metric([model], stats.shared_tokens)
    yield shared
    repeated = CounterMetricFamily(
        "promptmill_repeated_rows", "Rows that an identical row had answered already.", labels=["model"]
    )
    repeated.add_metric([model], stats.repeated_rows)
    yield repeated
    yield CounterMetricFamily(
        "promptmill_preempted_rows",
        "Times that a row gave up its place for want of memory.",
        value=stats.preempted_rows,
    )
    yield SummaryMetricFamily(
        "promptmill_step_seconds",
        "Steps of the engine, and the seconds spent in them.",
        count_value=stats.steps,
        sum_value=stats.step_seconds,
    )


def _state(stats: EngineStats, model: str) -> Iterator[Metric]:
    """How the engine's capacity is used."""
    running = GaugeMetricFamily("promptmill_running_rows", "Rows that generate at this moment.", labels=["model"])
    running.add_metric([model], stats.running_rows)
    yield running
    yield GaugeMetricFamily(
        "promptmill_kv_used_ratio", "Share of the room for keys and values that is taken.", value=stats.kv_used_ratio
    )
    yield GaugeMetricFamily(
        "promptmill_padding_ratio", "Share of computed positions that were padding.", value=stats.padding_ratio
    )


def serve_metrics(port: int, probes: Probes) -> None:
    """Answer ``/metrics``, ``/healthz`` and ``/readyz`` on ``port``. Raises InputError where it cannot be had."""
    serve("--metrics-port", port, probes)
    REGISTRY.register(ProcessCollector("worker"))


def watch_engine(context: WorkerContext) -> None:
    """Add the engine's counters to what is served."""
    REGISTRY.register(EngineCollector(context))
