"""The HTTP side of a process that goes on: ``/metrics`` for Prometheus, ``/healthz`` and ``/readyz`` for supervisors.

Imported by nothing that only runs a command: prometheus-client takes a while to import.
"""

from __future__ import annotations

import errno
import logging
import platform
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import REGISTRY, CollectorRegistry, disable_created_metrics, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from jobs import __version__
from jobs.errors import InputError
from jobs.telemetry.counters import recoveries

_log = logging.getLogger(__name__)

# Of no use to a Prometheus, and as many series again.
disable_created_metrics()  # type: ignore[no-untyped-call]

#: Seconds that a client may take over its request: one that sends nothing must not keep a thread for ever.
_CLIENT_S = 10.0

#: A probe's answer: None where all is well, else what is not, in one sentence.
Probe = Callable[[], str | None]


def _well() -> str | None:
    return None


@dataclass(slots=True)
class Probes:
    """What ``/healthz`` and ``/readyz`` ask; either may be replaced while they are served."""

    health: Probe = _well
    ready: Probe = _well


class ProcessCollector(Collector):
    """What every process of Promptmill says of itself."""

    def __init__(self, part: str) -> None:
        self._part = part

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "promptmill_build_info", "1; the labels say what runs.", labels=["part", "version", "python"]
        )
        build.add_metric([self._part, __version__, platform.python_version()], 1)
        yield build
        counted = CounterMetricFamily(
            "promptmill_recoveries", "What this process had to recover from, by reason.", labels=["reason"]
        )
        for reason, times in recoveries.counts().items():
            counted.add_metric([reason], times)
        yield counted


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)


class _Server(ThreadingWSGIServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that hung up is no page on stderr.
        _log.debug("the answer to %s was not taken", client_address, exc_info=True)


def serve(
    flag: str, port: int, probes: Probes, host: str = "0.0.0.0", registry: CollectorRegistry = REGISTRY
) -> Callable[[], None]:
    """Answer on ``host:port``, each request on a thread of its own; what is returned ends that.

    Raises InputError where the address cannot be had, naming the ``flag`` that gave the port.
    """
    try:
        families = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        kind = type("_FamilyServer", (_Server,), {"address_family": families[0][0]})
        server: WSGIServer = make_server(host, port, _application(probes, registry), kind, _Handler)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"no address to listen on is called {host!r}: name one of this machine") from error
    except OSError as error:
        where = "" if host == "0.0.0.0" else f" on {host}"
        mend = "an address of this machine" if error.errno == errno.EADDRNOTAVAIL else "a free port"
        raise InputError(f"{flag} {port} cannot be used{where} ({error.strerror}): name {mend}") from error
    threading.Thread(target=server.serve_forever, name="http", daemon=True).start()

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop


def _application(probes: Probes, registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            answer: Iterable[bytes] = metrics(environ, start_response)
            return answer
        if path not in ("/healthz", "/readyz"):
            start_response("404 Not Found", [_TEXT])
            return [b"/metrics, /healthz, /readyz\n"]
        wrong = (probes.health if path == "/healthz" else probes.ready)()
        start_response("503 Service Unavailable" if wrong else "200 OK", [_TEXT])
        return [f"{wrong or 'ok'}\n".encode()]

    return application


_TEXT = ("Content-Type", "text/plain; charset=utf-8")
