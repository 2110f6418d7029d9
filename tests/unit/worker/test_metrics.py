"""What a scrape of a worker says."""

from __future__ import annotations

import socket
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from jobs.errors import InputError
from jobs.telemetry.exposition import Probes
from worker.engine.request import EngineStats
from worker.metrics import EngineCollector, serve_metrics


@pytest.fixture
def scrape() -> str:
    stats = replace(
        EngineStats(), prompt_tokens=7, completion_tokens=5, steps=4, step_seconds=1.5, running_rows=2,
        shared_tokens=3, repeated_rows=6, preempted_rows=1, kv_used_ratio=0.25,
    )  # fmt: skip
    context: Any = SimpleNamespace(model="tiny", engine=SimpleNamespace(stats=lambda: stats))
    registry = CollectorRegistry()
    registry.register(EngineCollector(context))
    return generate_latest(registry).decode()


@pytest.mark.parametrize(
    "line",
    [
        'promptmill_tokens_total{kind="prompt",model="tiny"} 7.0',
        'promptmill_tokens_total{kind="completion",model="tiny"} 5.0',
        'promptmill_running_rows{model="tiny"} 2.0',
        'promptmill_shared_prompt_tokens_total{model="tiny"} 3.0',
        'promptmill_repeated_rows_total{model="tiny"} 6.0',
        "promptmill_preempted_rows_total 1.0",
        "promptmill_kv_used_ratio 0.25",
        "promptmill_padding_ratio 0.0",
        "promptmill_step_seconds_sum 1.5",
        "promptmill_step_seconds_count 4.0",
    ],
)
def test_the_engine_is_told_under_the_documented_names(scrape: str, line: str) -> None:
    assert line in scrape.splitlines()


def test_a_port_that_is_taken_is_an_error_of_the_command_line() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"--metrics-port {port} cannot be used \(Address already in use\)"):
            serve_metrics(port, Probes())
