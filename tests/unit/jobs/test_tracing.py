"""Traces cost nothing where nobody asks for them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from jobs.telemetry.tracing import trace_id

SPANS = """
import logging, sys
from jobs.telemetry.tracing import setup_tracing, span, step
logging.basicConfig(format="%(message)s")
if sys.argv[1:]:
    sys.modules["opentelemetry.sdk"] = None
setup_tracing("promptmill")
with span("batch", "store", "job", batch=1), step("commit"):
    pass
print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
"""


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SPANS, *arguments]
    return subprocess.run(command, env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_SERVICE_NAME": "mine"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_nothing_is_imported_where_no_traces_are_asked_for(env: dict[str, str]) -> None:
    done = run(**env)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_traces_that_are_asked_for_without_the_extra_are_told_once_and_do_no_harm() -> None:
    done = run("without", OTEL_TRACES_EXPORTER="console")
    assert done.stderr.startswith("no traces, for ")
    assert done.stderr.endswith(": install promptmill[otel]\n")


def test_a_job_has_one_trace_in_its_store_and_another_in_the_next() -> None:
    assert trace_id("a", "job") == trace_id("a", "job") != trace_id("b", "job")
    assert 0 < trace_id("a", "job") < 2**128


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A collector that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_the_end_of_a_process_does_not_wait_for_a_collector_that_takes_nothing(deaf: socket.socket) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
    code = SPANS.replace(
        "setup_tracing(", "import jobs.telemetry.tracing; jobs.telemetry.tracing._LAST_S = 0.2; setup_tracing("
    )
    command = [sys.executable, "-c", code]
    # The SDK itself would give up, and close its connection, after an hour.
    env = {"PATH": "/usr/bin:/bin", "OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "3600"}
    subprocess.run(command, env=env, capture_output=True, timeout=200, check=True)


def test_a_token_in_a_variable_that_cannot_be_read_is_not_logged() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    code = SPANS + "import os; sys.stdout.flush(); os._exit(0)"
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_HEADERS": "Bearer hidden-word"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PATH": "/usr/bin:/bin", **env}, capture_output=True, text=True, check=True
    )
    assert "(OTEL_EXPORTER_OTLP_..._HEADERS) is no list of key=value" in done.stderr
    assert "hidden-word" not in done.stderr
