"""The records of jobs in the store: reading, listing, and the wishes (cancel) put beside them."""

from __future__ import annotations

from collections.abc import Iterator

import orjson

from jobs import layout
from jobs.errors import DamagedFileError, NotFoundError, UnknownJobError
from jobs.job_file import JobFile
from jobs.spec import check_job_id, now
from jobs.store import Store


def read_job(store: Store, job: str) -> JobFile:
    """The record of ``job``.

    Raises UnknownJobError, InputError (an id that is none), JobVersionError or DamagedFileError.
    """
    path = layout.job_file(check_job_id(job))
    try:
        record = JobFile.from_bytes(store.get(path))
    except NotFoundError:
        deleted = " any more: it was deleted" if is_deleted(store, job) else ""
        raise UnknownJobError(
            f"no job {job!r} in the store {store.uri}{deleted}; `promptmill list` shows the jobs there are"
        ) from None
    except ValueError as error:
        raise DamagedFileError(f"{store.locate(path)} is no job file that this program reads: {error}") from error
    if record.id != job:
        raise DamagedFileError(f"{store.locate(path)} is the record of another job, {record.id!r}")
    return record


def is_deleted(store: Store, job: str) -> bool:
    """Whether ``job`` was deleted: its id is not used again."""
    return store.exists(layout.tombstone_file(job))


def job_ids(store: Store) -> Iterator[str]:
    """The ids of all jobs that were accepted and not deleted."""
    for item in store.list(layout.JOBS):
        job = layout.job_of_file(item.path)
        if job is not None:
            yield job


def has_ended(store: Store, job: str) -> bool:
    """Whether the dataset of ``job`` is complete: its ``_SUCCESS`` is there."""
    return store.exists(layout.success_file(job))


def wish_cancel(store: Store, job: str) -> None:
    """Put the wish to cancel ``job``, so that it survives the loss of Redis."""
    content = orjson.dumps({"job": job, "at": now().isoformat()})
    store.put_if_absent(layout.cancel_file(job), content)


def note_expired(store: Store, job: str) -> None:
    """Note that the deadline of ``job`` has fired."""
    content = orjson.dumps({"job": job, "at": now().isoformat()})
    store.put_if_absent(layout.expired_file(job), content)


def pin(store: Store, job: str, fingerprint: str) -> str:
    """Pin ``job`` to the weights ``fingerprint`` unless it is pinned; the fingerprint that holds.

    Raises DamagedFileError where the pin that is there cannot be read.
    """
    if store.put_if_absent(layout.pin_file(job), orjson.dumps({"job": job, "fingerprint": fingerprint})):
        return fingerprint
    return pinned(store, job) or fingerprint


def pinned(store: Store, job: str) -> str | None:
    """The fingerprint of the weights that ``job`` was begun with, None before its first batch.

    Raises DamagedFileError.
    """
    path = layout.pin_file(job)
    try:
        fingerprint = orjson.loads(store.get(path))["fingerprint"]
    except NotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{store.locate(path)} cannot be read: {error}") from error
    if not isinstance(fingerprint, str) or not fingerprint:
        raise DamagedFileError(f"{store.locate(path)} names no weights")
    return fingerprint


def read_manifest(store: Store, job: str) -> dict[str, object] | None:
    """The manifest of an ended job, None while it has not ended. Raises DamagedFileError."""
    if not has_ended(store, job):
        return None
    try:
        manifest = orjson.loads(store.get(layout.manifest_file(job)))
    except (NotFoundError, orjson.JSONDecodeError) as error:
        raise DamagedFileError(f"{store.locate(layout.manifest_file(job))} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise DamagedFileError(f"{store.locate(layout.manifest_file(job))} is no manifest")
    return manifest
