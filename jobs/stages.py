"""Stages that no job names: what a submit left behind that was killed before its job was accepted."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from jobs.errors import DamagedFileError
from jobs.layout import STAGES, stage_of
from jobs.records import job_ids, read_job
from jobs.store import Store

_log = logging.getLogger(__name__)

#: A stage is left alone for so long after its last write: its submit may still be going on.
ABANDONED_AFTER = timedelta(days=7)


def remove_abandoned(store: Store, now: datetime) -> list[str]:
    """Remove the stages that no job names and that nobody has written to for 7 days; their names.

    Removes nothing where a job's record cannot be read: any stage might be that job's. Raises
    StoreUnavailableError.
    """
    files: dict[str, list[str]] = {}
    last: dict[str, datetime] = {}
    for item in store.list(STAGES):
        stage = stage_of(item.path)
        if stage is not None:
            files.setdefault(stage, []).append(item.path)
            last[stage] = max(last.get(stage, item.modified), item.modified)
    old = {stage for stage, modified in last.items() if now - modified > ABANDONED_AFTER}
    if not old:
        return []
    try:
        abandoned = sorted(old - {read_job(store, job).stage for job in job_ids(store)})
    except DamagedFileError as error:
        _log.warning("abandoned stages are kept: %s", error)
        return []
    for stage in abandoned:
        store.delete(files[stage])
        _log.info("stage %s was never accepted and is removed", stage)
    return abandoned
