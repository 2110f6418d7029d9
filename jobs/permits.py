"""Permits: the Celery messages that say "one more batch of this model may run", and nothing else.

Which batch is decided at the claim, by the ledger. Losing, repeating or inventing permits can therefore
neither lose nor repeat work, and the broker never is the only place that knows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis.connection import SSLConnection, UnixDomainSocketConnection, parse_url
from redis.exceptions import RedisError

from jobs.errors import InputError, RedisUnavailableError
from jobs.ledger.login import FileLogin

#: The only task that a worker accepts.
PERMIT_TASK = "promptmill.permit"

#: Permits sent at once, at most, and by a claim that finds more work and no permit that waits. A queue that was empty
#: grows by doubling from there, so thousands of idle slots need no sender that sends a permit to each of them.
MAX_AT_ONCE, SUCCESSORS = 64, 2

#: Seconds. None as socket_timeout would let a publish hang for ever on a half-open connection.
_TRANSPORT_OPTIONS = {
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
}

#: What :func:`redis.connection.parse_url` finds: where the server is and who asks, ...
_WHERE = frozenset({"connection_class", "host", "port", "path", "db", "username", "password"})
#: ... how its certificate is checked, ...
_TLS = frozenset({"ssl_cert_reqs", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
_SPELLED_LOW = frozenset({"ssl_check_hostname"})
#: ... and how a connection behaves, which says nothing about those of Celery.
_TUNING = frozenset({
    "socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size", "health_check_interval",
    "retry_on_timeout", "max_connections", "timeout", "client_name", "protocol", "legacy_responses",
})  # fmt: skip


def broker_prefix(store_id: str) -> str:
    """What goes before every key that Celery keeps in Redis for this store."""
    return f"promptmill:{store_id}:celery:"


def queue_name(model: str) -> str:
    return f"permits.{model}"


def queue_key(store_id: str, model: str) -> str:
    """The Redis list of the permits that wait for workers of ``model``."""
    return broker_prefix(store_id) + queue_name(model)


def make_app(redis_url: str, store_id: str, model: str | None = None) -> Celery:
    """The Celery app of either side. A worker names the ``model`` whose permits it consumes.

    Raises InputError for a URL that Celery cannot use.
    """
    broker = broker_url(redis_url)
    login = FileLogin.of(redis_url)
    if login is not None:
        broker = broker_url(redis_url, anonymous=True)
    app = Celery("promptmill", broker=broker, set_as_current=False)
    if login is not None:
        # Celery has no setting for it.
        app.amqp.Connection = partial(Connection, credential_provider=login)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_default_queue=queue_name(model or "none"),
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        # A permit that waits in a busy worker would starve an idle one.
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        # Not available with the threads pool; leases take their place.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_channel_error_retry=True,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={**_TRANSPORT_OPTIONS, "global_keyprefix": broker_prefix(store_id)},
    )
    app.conf.task_queues = [_queue(model)] if model else []
    return app


def _queue(model: str) -> Queue:
    # A permit that is taken is gone: to note it until it is acknowledged is work, and fails in a Redis that is full.
    return Queue(queue_name(model), no_ack=True)  # type: ignore[no-untyped-call]


def broker_url(redis_url: str, *, anonymous: bool = False) -> str:
    """A Redis URL as kombu spells it, which means to it what the given one means to redis-py.

    kombu takes the database from the path alone (over a Unix socket from ``virtual_host``), and of redis-py's
    options those of TLS. Options that tune a connection are left out: permits have their own. An ``anonymous`` one has
    neither user nor password. Raises InputError.
    """
    try:
        options: dict[str, Any] = parse_url(redis_url)  # type: ignore[no-untyped-call]
        options["port"] = int(options.get("port", 6379))
    except ValueError as error:
        # Not the error's own words: they may hold a part of the password.
        raise InputError(
            "PROMPTMILL_REDIS_URL is no Redis URL: redis://[user:password@]host[:port][/db], rediss://... or "
            "unix://[user:password@]/path[?db=N]; percent-encode special characters of the password"
        ) from error
    _refuse_unknown(options)
    user, password = (quote(options.get(name, ""), safe="") for name in ("username", "password"))
    login = f"{user}:{password}@" if (user or password) and not anonymous else ""
    database = options.get("db", 0)
    if options.get("connection_class") is UnixDomainSocketConnection:
        return f"redis+socket://{login}{quote(options['path'])}?virtual_host={database}"
    host = options.get("host", "localhost")
    address = f"{f'[{host}]' if ':' in host else quote(host)}:{options['port']}/{database}"
    if options.get("connection_class") is not SSLConnection:
        return f"redis://{login}{address}"
    tls = {name: str(options[name]).lower() if name in _SPELLED_LOW else options[name] for name in _TLS & set(options)}
    # Named even if not given: without any, kombu would not check the certificate.
    return f"rediss://{login}{address}?{urlencode(sorted({'ssl_cert_reqs': 'required', **tls}.items()))}"


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raises InputError for what would get lost on the way to kombu."""
    tls = _TLS if options.get("connection_class") is SSLConnection else frozenset()
    unix = options.get("connection_class") is UnixDomainSocketConnection
    unknown = sorted(set(options) - _WHERE - _TUNING - tls)
    if unknown:
        raise InputError(
            f"PROMPTMILL_REDIS_URL has options that Celery cannot use: {', '.join(unknown)}; leave them out"
        )
    if unix and not options.get("path"):
        raise InputError("PROMPTMILL_REDIS_URL names no socket: unix:///path/of/redis.sock")
    if options.get("ssl_cert_reqs", "none") not in ("none", "optional", "required"):
        raise InputError("PROMPTMILL_REDIS_URL: ssl_cert_reqs is none, optional or required")


class Permits:
    """Sends permits for one store. Safe to use from many threads."""

    def __init__(self, app: Celery, store_id: str) -> None:
        self._app = app
        self._store_id = store_id

    def send(self, model: str, count: int = 1) -> None:
        """Put ``count`` permits on the model's queue, MAX_AT_ONCE at most. Raises RedisUnavailableError."""
        try:
            with self._app.producer_or_acquire() as producer:
                for _ in range(min(count, MAX_AT_ONCE)):
                    self._app.send_task(
                        PERMIT_TASK,
                        queue=_queue(model),
                        producer=producer,
                        retry=True,
                        retry_policy={"max_retries": 2, "interval_start": 0.1, "interval_max": 0.5},
                    )
        except (OperationalError, RedisError, OSError) as error:
            raise RedisUnavailableError(f"Redis did not take a permit for model {model}: {error}") from error

    def queue_key(self, model: str) -> str:
        return queue_key(self._store_id, model)

    def close(self) -> None:
        self._app.close()
