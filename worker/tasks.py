"""The one task that workers accept."""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery

from jobs.permits import PERMIT_TASK
from worker.batch import run_permit
from worker.context import WorkerContext

_log = logging.getLogger(__name__)


def register_tasks(app: Celery, context: WorkerContext) -> None:
    """Register the permit task on ``app``, bound to this process's context."""

    @app.task(name=PERMIT_TASK, ignore_result=True)  # type: ignore[untyped-decorator]
    def permit(*args: Any, **kwargs: Any) -> None:  # arguments of newer producers are no reason to fail
        try:
            run_permit(context)
        except BaseException:
            _log.exception("a permit failed; its lease was handed back")
            # What failed can be claimed again at once, and may fail again: no busy loop.
            context.draining.wait(1.0)
