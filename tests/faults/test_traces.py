"""Traces of a job, taken by a real receiver from a real worker: one trace from submit to dataset, whoever does what."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from jobs.telemetry.tracing import trace_id
from tests.mill import LONG_LEASE, Mill

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

pytestmark = pytest.mark.faults


class Receiver:
    """Takes OTLP over HTTP, as a collector does; what it got is in ``spans`` with the service that sent it."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.take(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        request = trace_service.ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_all_that_is_done_for_a_job_is_one_trace(mill: Mill, tiny: Path, receiver: Receiver) -> None:
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    worker = mill.worker("tiny", tiny, **LONG_LEASE, **asked)
    source = mill.prompts("traced", 8)
    flags = ("--model", "tiny", "--batch-size", "4", "--max-tokens", "4", "--job-id", "traced")
    mill.run("submit", source, *flags, **asked).ok()
    mill.wait_for("traced", "completed")
    worker.send(signal.SIGTERM)
    assert worker.wait() == 0

    wanted = trace_id(mill.store.id, "traced").to_bytes(16, "big")
    assert {span.trace_id for _, span in receiver.spans} == {wanted}
    names = sorted((service, span.name) for service, span in receiver.spans if not span.parent_span_id)
    worked = [("promptmill-worker", name) for name in ("batch", "batch", "finalize")]
    assert names == [("promptmill", "submit"), *worked]
    batch = next(span for _, span in receiver.spans if span.name == "batch")
    steps = [span.name for _, span in receiver.spans if span.parent_span_id == batch.span_id]
    assert sorted(steps) == ["commit", "finish", "generate"]
    told = {a.key: a.value.string_value or a.value.int_value for a in batch.attributes}
    assert (told["promptmill.job"], told["promptmill.attempt"]) == ("traced", 1)
