"""OpenTelemetry traces, where the extra ``promptmill[otel]`` is installed and the usual variables ask for them.

Everything that is done for a job, by whatever process, is one trace: its id is a hash of the store's id and the job's,
so no message carries it. Without the variables nothing is imported, and a span costs a look at a global.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

_log = logging.getLogger(__name__)

#: One of these set means that traces are wanted; what else there is to say, the SDK reads from others of its own.
_ASKED_BY = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

#: Seconds that the end of a process waits for a collector that takes no spans: less than its supervisor waits for it.
_LAST_S = 5.0

_tracer: Tracer | None = None
#: Sends what was not sent yet.
_end: Callable[[], None] | None = None
#: The trace that a span without a parent opens here.
_trace: ContextVar[int | None] = ContextVar("trace", default=None)


def setup_tracing(service: str) -> None:
    """Trace from now on, if the environment asks for it; ``service`` is the name unless OTEL_SERVICE_NAME is set."""
    global _tracer
    kind = os.environ.get("OTEL_TRACES_EXPORTER", "otlp").strip().lower()
    asked = any(os.environ.get(name) for name in _ASKED_BY)
    if not asked or kind == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    try:
        _tracer = _make_tracer(service, kind)
    except ImportError as error:
        _log.warning("no traces, for %s: install promptmill[otel]", error)


@contextmanager
def traced(service: str) -> Iterator[None]:
    """Around what goes on until it is told to end: as ``setup_tracing``; the last spans are sent before it has."""
    setup_tracing(service)
    try:
        yield
    finally:
        if _end is not None:
            atexit.unregister(_end)
            _end()


def _make_tracer(service: str, kind: str) -> Tracer:
    """Raises ImportError."""
    global _end
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return _trace.get() or super().generate_trace_id()

    # It quotes headers that it cannot read, and they hold tokens.
    logging.getLogger("opentelemetry.util.re").addFilter(_without_values)
    exporter: SpanExporter
    if kind == "console":
        exporter = ConsoleSpanExporter()
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        exporter = OTLPSpanExporter()
    named = os.environ.get("OTEL_SERVICE_NAME") or service
    # The sampler is that of OTEL_TRACES_SAMPLER. One that goes by the trace's id decides alike in every process.
    resource = Resource.create({"service.name": named})
    provider = TracerProvider(id_generator=Ids(), resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    sender = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)

    def end() -> None:
        sender.start()
        sender.join(_LAST_S)

    _end = end
    atexit.register(end)
    return provider.get_tracer("promptmill")


def _without_values(record: logging.LogRecord) -> bool:
    if record.args:
        record.msg, record.args = "a variable with headers (OTEL_EXPORTER_OTLP_..._HEADERS) is no list of key=value", ()
    return True


def trace_id(store_id: str, job: str) -> int:
    """The id of a job's trace; as 32 hexadecimal digits it is what a viewer of traces looks for."""
    return int.from_bytes(sha256(f"{store_id}:{job}".encode()).digest()[:16], "big")


def moment() -> int:
    """Now, as ``span`` wants to be told when something began."""
    return time.time_ns()


@contextmanager
def span(name: str, store_id: str, job: str, began: int | None = None, **attributes: str | int) -> Iterator[None]:
    """A piece of a job's work; ``began`` says when it did, if that was before it was known for which job."""
    if _tracer is None:
        yield
        return
    told = {"promptmill.job": job, **{f"promptmill.{key}": value for key, value in attributes.items()}}
    token = _trace.set(trace_id(store_id, job))
    try:
        with _tracer.start_as_current_span(name, attributes=told, start_time=began):
            yield
    finally:
        _trace.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """A part of the span that this thread is in."""
    if _tracer is None:
        yield
        return
    with _tracer.start_as_current_span(name):
        yield
