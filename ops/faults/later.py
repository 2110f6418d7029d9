"""Makes a process one of a later release, for the tests of versions that mix.

``install()`` changes what such a release would have changed; the environment says what:

LATER_JOBS   its jobs are of version 3, with a field that this release does not know; it reads version 2 too.
LATER_LAYOUT it keeps the state of jobs in Redis in layout 2.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import orjson

import jobs
from jobs import job_file
from jobs.job_file import JobFile
from jobs.ledger import connection, keys

VERSION = "9.0.0"
#: In job files of version 3.
_FIELD = "novelty"


def install() -> None:
    """What is imported later finds the changes; what has been imported is changed where it is."""
    _set("__version__", jobs.__version__, VERSION)
    if "LATER_JOBS" in os.environ:
        _write_later_jobs()
    if "LATER_LAYOUT" in os.environ:
        keys.LAYOUT = 2
    connection._SOURCES = connection._load()


def _set(name: str, old: object, new: object) -> None:
    for module in list(sys.modules.values()):
        ours = getattr(module, "__name__", "").split(".")[0] in ("jobs", "producer", "worker")
        if ours and getattr(module, name, None) == old:
            setattr(module, name, new)


def _write_later_jobs() -> None:
    _set("JOB_VERSION", job_file.JOB_VERSION, 3)
    _set("JOB_VERSIONS", job_file.JOB_VERSIONS, (2, 3))
    JobFile.model_fields["version"].default = 3
    JobFile.model_rebuild(force=True)
    to_bytes, from_bytes = JobFile.to_bytes, JobFile.from_bytes

    def write(job: JobFile) -> bytes:
        return orjson.dumps({**orjson.loads(to_bytes(job)), _FIELD: True})

    def read(cls: type[JobFile], content: bytes) -> JobFile:
        record: dict[str, Any] = orjson.loads(content)
        record.pop(_FIELD, None)
        return from_bytes(orjson.dumps(record))

    JobFile.to_bytes = write  # type: ignore[method-assign]
    JobFile.from_bytes = classmethod(read)  # type: ignore[assignment]
