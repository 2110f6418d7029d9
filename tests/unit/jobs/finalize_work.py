"""What the tests of the finalizer read and put."""

from __future__ import annotations

from typing import Any

import orjson
import pyarrow as pa

from jobs import layout
from jobs.job_file import JobFile
from jobs.store import Store


def manifest(store: Store, job: JobFile) -> dict[str, Any]:
    return orjson.loads(store.get(layout.manifest_file(job.id)))  # type: ignore[no-any-return]


def keys_of(table: pa.Table) -> list[tuple[int, int]]:
    return list(zip(table.column("row_index").to_pylist(), table.column("sample_index").to_pylist(), strict=True))


def put_plan(store: Store, job: JobFile, *files: tuple[int, int, int]) -> None:
    """A plan that another finalizer has stored: (first batch, last batch, rows) of each file."""
    entries = [dict(zip(("first", "last", "rows"), file, strict=True)) for file in files]
    store.put_if_absent(layout.plan_file(job.stage), orjson.dumps({"files": entries}))


def snapshot(store: Store, job: JobFile) -> dict[str, bytes]:
    """The published files but for the times in the manifest."""
    files = {item.path: store.get(item.path) for item in store.list(layout.results_prefix(job.id))}
    said = orjson.loads(files.pop(layout.manifest_file(job.id)))
    del said["ended_at"]
    return {**files, "manifest": orjson.dumps(said)}
