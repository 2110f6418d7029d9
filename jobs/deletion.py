"""Deleting a job: its record first, which makes it nobody's, then all that it left.

A tombstone stays, so that no id is used twice. It names the job's stage: a deletion that was cut short goes on from it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import orjson

from jobs import layout
from jobs.errors import DamagedFileError, NotFoundError, UnknownJobError
from jobs.parallel import in_parallel
from jobs.records import is_deleted, read_job
from jobs.spec import now
from jobs.store import Store

_log = logging.getLogger(__name__)


def delete_job(store: Store, job: str, forget: Callable[[str], None]) -> int:
    """Remove ``job``, whatever its state; how many files its stage and its dataset had.

    ``forget`` takes it out of the ledger. Workers that run it find its record gone and drop their rows; what one of
    them still commits is removed by it, or by upkeep. Cut short at any point and called again it goes on. Raises
    UnknownJobError for a job that there never was.
    """
    stage = _bury(store, job)
    forget(job)
    # Without _SUCCESS nobody takes the dataset for whole.
    store.delete([layout.success_file(job), layout.manifest_file(job)])
    files = 0
    for folder in (layout.results_prefix(job), *([layout.stage_prefix(stage)] if stage else [])):
        for _ in in_parallel(lambda item: store.delete([item.path]), list(store.list(folder))):
            files += 1
        store.remove_empty_folders(folder)
    store.delete([layout.cancel_file(job), layout.expired_file(job), layout.pin_file(job)])
    # A worker that was about to tell the ledger of the job may have done so meanwhile.
    forget(job)
    return files


def clear_if_deleted(store: Store, job: str, forget: Callable[[str], None]) -> bool:
    """Whether ``job`` was deleted while somebody worked on it; what that put of it meanwhile is removed then."""
    if store.exists(layout.job_file(job)) or not is_deleted(store, job):
        return False
    _log.warning("job %s was deleted: what was in hand of it is dropped", job, extra={"job": job})
    delete_job(store, job, forget)
    return True


def _bury(store: Store, job: str) -> str | None:
    """Put the tombstone, then remove the record; the job's stage, None where nobody knows it any more."""
    stage: str | None = None
    try:
        stage = read_job(store, job).stage
    except DamagedFileError as error:
        _log.warning("the files of job %s that its record names are left to upkeep: %s", job, error, extra={"job": job})
    except UnknownJobError:
        if not is_deleted(store, job):
            raise
    grave = orjson.dumps({"job": job, "stage": stage, "at": now().isoformat()})
    if not store.put_if_absent(layout.tombstone_file(job), grave):
        stage = stage or _stage_of_grave(store, job)
    store.delete([layout.job_file(job)])
    return stage


def _stage_of_grave(store: Store, job: str) -> str | None:
    try:
        stage = orjson.loads(store.get(layout.tombstone_file(job)))["stage"]
    except (NotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return None
    return stage if isinstance(stage, str) and re.match(layout.STAGE_PATTERN, stage) else None


def remove_leftovers(store: Store) -> list[str]:
    """Remove what workers put of jobs that were being deleted; the ids of these jobs. Raises StoreUnavailableError.

    Their stages need no care here: upkeep removes those that no job names.
    """
    beside = {(found, item.path) for item in store.list(layout.JOBS) if (found := layout.mark_of_file(item.path))}
    deleted = {job for (job, kind), _ in beside if kind == "deleted"}
    if not deleted:
        return []
    left = {path: job for (job, kind), path in beside if kind != "deleted" and job in deleted}
    for item in store.list(layout.RESULTS):
        owner = layout.job_of_result(item.path)
        if owner is not None and owner in deleted:
            left[item.path] = owner
    cleared = sorted({job for job in left.values() if not store.exists(layout.job_file(job))})
    for job in cleared:
        store.delete([path for path, owner in left.items() if owner == job])
        store.remove_empty_folders(layout.results_prefix(job))
        _log.info("job %s was deleted: what workers put of it after that is removed", job, extra={"job": job})
    return cleared
