"""What killed processes leave behind: stages that no job names, parts of ended jobs, files half written."""

from __future__ import annotations

import logging
import secrets
from datetime import datetime, timedelta

from jobs.deletion import remove_leftovers
from jobs.errors import DamagedFileError, JobVersionError, UnknownJobError
from jobs.layout import STAGES, is_working_file, stage_of
from jobs.parts import working_files
from jobs.records import has_ended, job_ids, read_job
from jobs.spec import now
from jobs.store import Store

_log = logging.getLogger(__name__)

#: A stage is left alone for so long after its last write: its submit may still be going on.
ABANDONED_AFTER = timedelta(days=7)

#: So old a file that is still being written belongs to nobody any more.
_UNFINISHED_AFTER = timedelta(days=1)


def new_stage() -> str:
    """A name that no stage has: submits and retries never meet."""
    return f"{now():%Y%m%d}-{secrets.token_hex(8)}"


def clean_up(store: Store, now: datetime) -> None:
    """Remove all that is left behind. Raises StoreUnavailableError."""
    remove_abandoned(store, now)
    remove_ended_parts(store)
    remove_leftovers(store)
    store.remove_unfinished(now - _UNFINISHED_AFTER)


def remove_ended_parts(store: Store) -> list[str]:
    """Remove the parts of jobs that have ended, whose finalizers died before they did; the ids of these jobs.

    A job whose record cannot be read keeps its parts. Raises StoreUnavailableError.
    """
    left = {stage_of(item.path) for item in store.list(STAGES) if is_working_file(item.path)}
    jobs = []
    for job in job_ids(store) if left else ():
        try:
            stage = read_job(store, job).stage
        except (DamagedFileError, JobVersionError, UnknownJobError):
            continue
        if stage in left and has_ended(store, job):
            store.delete(working_files(store, stage))
            _log.info("job %s: parts that its finalizer left behind are removed", job, extra={"job": job})
            jobs.append(job)
    return jobs


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
    except (DamagedFileError, JobVersionError) as error:
        _log.warning("abandoned stages are kept: %s", error)
        return []
    for stage in abandoned:
        store.delete(files[stage])
        _log.info("stage %s was never accepted and is removed", stage)
    return abandoned
