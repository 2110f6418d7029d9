"""Permits: the Celery messages that say "one more batch of this model may run", and nothing else.

Which batch is decided at the claim, by the ledger. Losing, repeating or inventing permits can therefore
neither lose nor repeat work, and the broker never is the only place that knows of it.
"""

from __future__ import annotations

from celery import Celery
from kombu.entity import Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from jobs.errors import RedisUnavailableError

#: The only task that a worker accepts.
PERMIT_TASK = "promptmill.permit"

#: Seconds. None as socket_timeout would let a publish hang for ever on a half-open connection.
_TRANSPORT_OPTIONS = {
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 25,
}


def broker_prefix(store_id: str) -> str:
    """What goes before every key that Celery keeps in Redis for this store."""
    return f"promptmill:{store_id}:celery:"


def queue_name(model: str) -> str:
    return f"permits.{model}"


def queue_key(store_id: str, model: str) -> str:
    """The Redis list of the permits that wait for workers of ``model``."""
    return broker_prefix(store_id) + queue_name(model)


def make_app(redis_url: str, store_id: str, model: str | None = None) -> Celery:
    """The Celery app of either side. A worker names the ``model`` whose permits it consumes."""
    app = Celery("promptmill", broker=broker_url(redis_url), set_as_current=False)
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
    return Queue(queue_name(model))  # type: ignore[no-untyped-call]


def broker_url(redis_url: str) -> str:
    """A Redis URL as kombu spells it: redis-py's ``unix://`` is its ``redis+socket://``."""
    scheme, separator, rest = redis_url.partition("://")
    return f"redis+socket://{rest}" if separator and scheme == "unix" else redis_url


class Permits:
    """Sends permits for one store. Safe to use from many threads."""

    def __init__(self, app: Celery, store_id: str) -> None:
        self._app = app
        self._store_id = store_id

    def send(self, model: str, count: int = 1) -> None:
        """Put ``count`` permits on the model's queue. Raises RedisUnavailableError."""
        try:
            with self._app.producer_or_acquire() as producer:
                for _ in range(count):
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
