"""The one task that workers accept."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery, Task
from celery.exceptions import InvalidTaskError
from celery.worker import strategy

from jobs.permits import PERMIT_TASK
from worker.claims import run_permit
from worker.context import WorkerContext

_log = logging.getLogger(__name__)


def _strategy(task: Task, app: Celery, consumer: object) -> Callable[..., None]:
    """Celery's way to take a message, but that none is acknowledged (see jobs/permits.py; kombu would keep the tag of
    each for ever), and that one which makes no sense does not end Celery: one that is invalid it puts away."""
    take = strategy.default(task, app, consumer)

    def take_permit(message: object, body: object, _ack: object, *rest: Any, **options: Any) -> None:
        try:
            take(message, body, _no_ack, *rest, **options)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InvalidTaskError(f"no permit: {error}") from error

    return take_permit


def _no_ack(*_: object) -> None:
    """In the place of an acknowledgement."""


def register_tasks(app: Celery, context: WorkerContext) -> None:
    """Register the permit task on ``app``, bound to this process's context."""

    @app.task(name=PERMIT_TASK, ignore_result=True, Strategy=staticmethod(_strategy))  # type: ignore[untyped-decorator]
    def permit(*args: Any, **kwargs: Any) -> None:  # arguments of newer producers are no reason to fail
        try:
            run_permit(context)
        except BaseException:
            _log.exception("a permit failed; its lease was handed back")
            # What failed can be claimed again at once, and may fail again: no busy loop.
            context.draining.wait(1.0)
