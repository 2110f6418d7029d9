"""The HTTP side of workers and exporter."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from jobs.errors import InputError
from jobs.telemetry.counters import Reason, Recoveries, recoveries
from jobs.telemetry.exposition import Probes, ProcessCollector, serve
from tests import web
from tests.ports import free_port

Get = Callable[[str], tuple[int, str]]


@pytest.fixture
def probes() -> Probes:
    return Probes()


@pytest.fixture
def get(probes: Probes) -> Iterator[Get]:
    registry = CollectorRegistry()
    registry.register(ProcessCollector("exporter"))
    port = free_port()
    stop = serve("--port", port, probes, "127.0.0.1", registry)

    yield partial(web.get, port)
    stop()


def test_probes_say_in_one_line_what_is_wrong(get: Get, probes: Probes) -> None:
    assert get("/healthz") == get("/readyz") == (200, "ok\n")
    probes.ready = lambda: "redis: it is away"
    assert get("/readyz") == (503, "redis: it is away\n")
    assert get("/healthz") == (200, "ok\n")


def test_an_unknown_path_names_those_there_are(get: Get) -> None:
    assert get("/") == (404, "/metrics, /healthz, /readyz\n")


def test_every_reason_of_recovery_is_served_before_it_happens(get: Get) -> None:
    lines = get("/metrics")[1].splitlines()
    for reason in Reason:
        assert any(line.startswith(f'promptmill_recoveries_total{{reason="{reason}"}} ') for line in lines)
    assert any(line.startswith('promptmill_build_info{part="exporter",') for line in lines)


def test_a_recovery_is_counted(get: Get) -> None:
    before = recoveries.counts()[Reason.PART_LOST]
    recoveries.count(Reason.PART_LOST, 3)
    assert f'promptmill_recoveries_total{{reason="part_lost"}} {before + 3:.1f}' in get("/metrics")[1].splitlines()
    assert Recoveries().counts() == dict.fromkeys(Reason, 0)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("127.0.0.1", r"--port \d+ cannot be used on 127.0.0.1 \(.+\): name a free port"),
        ("192.0.2.1", r"--port \d+ cannot be used on 192.0.2.1 \(.+\): name an address of this machine"),
        ("256.1.1.1", "no address to listen on is called '256.1.1.1': name one of this machine"),
        ("a..b", "no address to listen on is called 'a..b': name one of this machine"),
        ("", "no address to listen on is called '': name one of this machine"),
    ],
)
def test_an_address_that_cannot_be_had_is_an_error_of_the_command_line(host: str, said: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"^{said}$"):
            serve("--port", port, Probes(), host)
