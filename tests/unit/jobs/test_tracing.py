"""Traces cost nothing where nobody asks for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jobs.tracing import trace_id

SPANS = """
import logging, sys
from jobs.tracing import setup_tracing, span, step
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
