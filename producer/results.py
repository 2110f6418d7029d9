"""Reading a job's results: where the dataset is, as a dataset, and as batches of rows in order."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.fs import FileSystem

from jobs import layout
from jobs.errors import DamagedFileError, InputError, JobNotCompletedError, NotFoundError
from jobs.job_file import JobFile
from jobs.parallel import in_parallel
from jobs.parquet import open_parquet
from jobs.parts import list_parts
from jobs.records import has_ended, read_job, read_manifest
from jobs.results import read_part, result_schema
from jobs.store import Store
from producer.columns import unknown_column

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_log = logging.getLogger(__name__)

STATUSES = ("ok", "error", "cancelled", "expired")

#: Rows of a batch that is handed out.
_CHUNK_ROWS = 8_192
#: Small files of a remote store that are fetched at once.
_HELD = 8


def dataset_location(store: Store, job: str) -> str:
    """Where the dataset of ``job`` is. Raises UnknownJobError, JobNotCompletedError (there is none, or none yet)."""
    read_job(store, job)
    if not has_ended(store, job):
        raise JobNotCompletedError(
            f"job {job} has not ended, or has failed: its dataset is not complete. `promptmill status {job}` says "
            f"which and why; `promptmill watch {job}` waits for it, `promptmill recover {job}` has a failed job go on, "
            f"`promptmill results {job} --partial --to FILE` reads the finished batches"
        )
    return store.locate(layout.results_prefix(job))


def open_dataset(store: Store, job: str) -> ds.Dataset:
    """The dataset of an ended job for pyarrow. Raises as ``dataset_location``."""
    # Imported late: it imports pandas where that is installed, which takes longer than most commands.
    import pyarrow.dataset as ds

    location = dataset_location(store, job)
    record = read_job(store, job)
    paths = _dataset_files(store, job)
    schema = result_schema(record.columns)
    if store.is_local:
        return ds.dataset([store.locate(path) for path in paths], schema=schema, format="parquet")
    filesystem, root = FileSystem.from_uri(location)
    names = [f"{root}/{path.rsplit('/', 1)[-1]}" for path in paths]
    return ds.dataset(names, schema=schema, format="parquet", filesystem=filesystem)


def selected_schema(record: JobFile, columns: Sequence[str] | None = None) -> pa.Schema:
    """The schema of a job's results, or of these columns of them. Raises InputError for one that there is not."""
    schema = result_schema(record.columns)
    if columns is None:
        return schema
    for name in columns:
        if name not in schema.names:
            raise InputError(f"--columns: {unknown_column(name, schema.names)}")
    if not columns or len(set(columns)) < len(columns):
        raise InputError("--columns: name at least one column, and none twice")
    return pa.schema([schema.field(name) for name in columns])


def read_results(
    store: Store,
    job: str,
    *,
    partial: bool = False,
    columns: Sequence[str] | None = None,
    status: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """The result rows of ``job`` in the order of its input, of all columns and statuses by default.

    With ``partial`` the batches that are finished by now of a job that runs. Raises UnknownJobError,
    JobNotCompletedError, InputError, and DamagedFileError where a file of the dataset cannot be read.
    """
    if status is not None and status not in STATUSES:
        raise InputError(f"--status {status!r}: use one of {', '.join(STATUSES)}")
    record = read_job(store, job)
    schema = selected_schema(record, columns)
    if partial and not has_ended(store, job):
        tables = _finished_tables(store, record)
    else:
        dataset_location(store, job)
        wanted = None if columns is None else [*dict.fromkeys([*columns, "row_index", "status"])]
        tables = dataset_tables(store, record, wanted)
    return _chosen(tables, schema, status)


def _chosen(tables: Iterator[pa.Table], schema: pa.Schema, status: str | None) -> Iterator[pa.RecordBatch]:
    for table in tables:
        if status is not None:
            table = table.filter(pc.field("status") == status)
        yield from table.select(schema.names).cast(schema).to_batches(max_chunksize=_CHUNK_ROWS)


def _dataset_files(store: Store, job: str) -> list[str]:
    """The files of the dataset in the order of their rows: by number, which has five digits or more."""
    paths = (item.path for item in store.list(layout.results_prefix(job)) if item.path.endswith(".parquet"))
    return sorted(paths, key=lambda path: (len(path), path))


def dataset_tables(store: Store, record: JobFile, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The dataset of an ended job, a table for each row group. Raises DamagedFileError."""
    for path in _dataset_files(store, record.id):
        yield from _row_groups(store, path, None if columns is None else list(columns))


def _row_groups(store: Store, path: str, columns: list[str] | None) -> Iterator[pa.Table]:
    """Of one file: a function of its own, so that one file's bytes are gone before the next one's come."""
    try:
        file = open_parquet(store.get(path))
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=columns, use_threads=False)
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"{store.locate(path)} cannot be read: {error}") from error


def _finished_tables(store: Store, record: JobFile) -> Iterator[pa.Table]:
    """The parts that are there now; a job that ends meanwhile, which removes them, goes on from its dataset."""
    paths = list_parts(store, record.stage)
    if has_ended(store, record.id):
        # After the listing, or parts that were removed meanwhile would count as not finished.
        yield from dataset_tables(store, record)
        return
    for (batch, path), content in zip(paths.items(), fetch(store, list(paths.values())), strict=True):
        try:
            if content is None:
                raise DamagedFileError("it is gone")
            yield read_part(content)
        except DamagedFileError as error:
            read_job(store, record.id)  # it may have been deleted
            if has_ended(store, record.id):
                first = record.batch_rows(batch).start
                for table in dataset_tables(store, record):
                    yield table.filter(pc.field("row_index") >= first)
                return
            _log.warning("%s is left out: %s", store.locate(path), error)


def fetch(store: Store, paths: Sequence[str]) -> Iterator[bytes | None]:
    """The contents of small files in order, None for one that is gone.

    A remote store takes many small reads at once as fast as one.
    """

    def get(path: str) -> bytes | None:
        try:
            return store.get(path)
        except NotFoundError:
            return None

    if store.is_local:
        yield from map(get, paths)
        return
    yield from in_parallel(get, paths, held=_HELD)


def read_published(store: Store, record: JobFile) -> Iterator[pa.Table]:
    """The rows of an ended job, each file verified first against its manifest. Raises DamagedFileError."""
    manifest: dict[str, Any] = read_manifest(store, record.id) or {}
    schema = result_schema(record.columns)
    for entry in manifest.get("files", []):
        path = f"{layout.results_prefix(record.id)}/{entry['path']}"
        try:
            content = store.get(path)
        except NotFoundError as error:
            raise DamagedFileError(f"{error}: the dataset of job {record.id} is not whole") from error
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise DamagedFileError(f"{store.locate(path)} is not what its manifest says: it was damaged or changed")
        file = open_parquet(content)
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False).cast(schema)


def head(batches: Iterator[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """The first ``count`` rows."""
    for batch in batches:
        if count <= 0:
            return
        yield batch.slice(0, count)
        count -= batch.num_rows


def head_requests(batches: Iterator[pa.RecordBatch], count: int) -> Iterator[pa.RecordBatch]:
    """The rows of the first ``count`` requests, each with all its samples."""
    seen: set[Any] = set()
    for batch in batches:
        indexes = batch.column("row_index").to_pylist()
        for place, index in enumerate(indexes):
            if index not in seen and len(seen) == count:
                yield batch.slice(0, place)
                return
            seen.add(index)
        yield batch
