"""Reading a job's results: as a dataset, as batches in order, and exported to one file."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem

from jobs import layout
from jobs.errors import DamagedFileError, InputError, JobNotCompletedError, NotFoundError
from jobs.parquet import open_parquet
from jobs.parts import list_parts
from jobs.records import has_ended, read_job, read_manifest
from jobs.results import read_part, result_schema
from jobs.spec import JobFile
from jobs.store import Store

if TYPE_CHECKING:
    import pyarrow.dataset as ds

FORMATS = ("parquet", "jsonl", "csv", "openai")


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
    paths = sorted(item.path for item in store.list(layout.results_prefix(job)) if item.path.endswith(".parquet"))
    schema = result_schema(record.columns)
    if store.is_local:
        return ds.dataset([store.locate(path) for path in paths], schema=schema, format="parquet")
    filesystem, root = FileSystem.from_uri(location)
    names = [f"{root}/{path.rsplit('/', 1)[-1]}" for path in paths]
    return ds.dataset(names, schema=schema, format="parquet", filesystem=filesystem)


def read_results(store: Store, job: str, *, partial: bool = False) -> Iterator[pa.RecordBatch]:
    """The result rows of ``job`` in the order of its input.

    With ``partial`` the finished batches of a job that runs. Raises UnknownJobError, JobNotCompletedError.
    """
    record = read_job(store, job)
    schema = result_schema(record.columns)
    if partial and not has_ended(store, job):
        tables: Iterator[pa.Table] = (read_part(store.get(path)) for path in list_parts(store, record.stage).values())
    else:
        dataset_location(store, job)
        tables = _result_tables(store, record)
    for table in tables:
        yield from table.cast(schema).to_batches(max_chunksize=8_192)


def _result_tables(store: Store, record: JobFile) -> Iterator[pa.Table]:
    paths = sorted(item.path for item in store.list(layout.results_prefix(record.id)) if item.path.endswith(".parquet"))
    for path in paths:
        file = open_parquet(store.get(path))
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, use_threads=False)


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


def format_of(target: str, given: str | None) -> str:
    """The format of an export: as given, else by the file's extension. Raises InputError."""
    found = given or Path(target).suffix.removeprefix(".") or "parquet"
    if found not in FORMATS:
        raise InputError(f"--format {found!r}: use one of {', '.join(FORMATS)}")
    return found


def export(record: JobFile, batches: Iterator[pa.RecordBatch], target: str, form: str) -> int:
    """Write rows to ``target`` (``-`` is stdout) and return how many; the file appears whole or not at all.

    Raises InputError where it cannot be written.
    """
    schema = result_schema(record.columns)
    if target == "-":
        if form == "parquet":
            raise InputError("parquet cannot be written to stdout; use --to FILE, or --format jsonl or csv")
        return _WRITERS[form](batches, schema, sys.stdout)
    path = Path(target)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if form == "parquet":
            rows = _write_parquet(batches, schema, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                rows = _WRITERS[form](batches, schema, file)
        temporary.replace(path)
        return rows
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _write_parquet(batches: Iterator[pa.RecordBatch], schema: pa.Schema, path: Path) -> int:
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _write_jsonl(batches: Iterator[pa.RecordBatch], schema: pa.Schema, file: TextIO) -> int:
    rows = 0
    for row in _rows(batches):
        file.write(orjson.dumps(row, default=str, option=orjson.OPT_NAIVE_UTC).decode() + "\n")
        rows += 1
    return rows


#: What a spreadsheet takes for the start of a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _write_csv(batches: Iterator[pa.RecordBatch], schema: pa.Schema, file: TextIO) -> int:
    """CSV for spreadsheets: text that would be taken for a formula gets an apostrophe before it."""
    writer = csv.writer(file)
    writer.writerow([_safe_cell(name) for name in schema.names])
    rows = 0
    for row in _rows(batches):
        writer.writerow([_safe_cell(value) for value in row.values()])
        rows += 1
    return rows


def _safe_cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, list | dict):
        return orjson.dumps(value, default=str).decode()
    return value


def _rows(batches: Iterator[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _write_openai(batches: Iterator[pa.RecordBatch], schema: pa.Schema, file: TextIO) -> int:
    """Lines as the OpenAI Batch API writes them: one for each prompt, its samples as choices."""
    lines = 0
    samples: list[dict[str, Any]] = []
    for row in _rows(batches):
        if samples and row["row_index"] != samples[0]["row_index"]:
            file.write(_openai_line(samples))
            lines, samples = lines + 1, []
        samples.append(row)
    if samples:
        file.write(_openai_line(samples))
        lines += 1
    return lines


def _openai_line(samples: list[dict[str, Any]]) -> str:
    first = samples[0]
    custom_id = first["custom_id"] if first["custom_id"] is not None else f"row-{first['row_index']}"
    failed = next((row for row in samples if row["status"] != "ok"), None)
    line: dict[str, Any] = {"id": f"batch_req_{first['row_index']}", "custom_id": custom_id}
    if failed is not None:
        code = failed["error_code"] or failed["status"]
        line |= {"response": None, "error": {"code": code, "message": failed["error_message"] or code}}
        return orjson.dumps(line).decode() + "\n"
    prompt, completion = first["prompt_tokens"], sum(row["completion_tokens"] for row in samples)
    body = {
        "id": f"chatcmpl-{first['row_index']}",
        "object": "chat.completion",
        "created": int(first["finished_at"].timestamp()),
        "model": first["model"],
        "choices": [
            {
                "index": row["sample_index"],
                "message": {"role": "assistant", "content": row["text"]},
                "logprobs": None,
                "finish_reason": row["finish_reason"],
            }
            for row in samples
        ],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    }
    line |= {"response": {"status_code": 200, "request_id": f"req_{first['row_index']}", "body": body}, "error": None}
    return orjson.dumps(line).decode() + "\n"


_WRITERS: dict[str, Callable[[Iterator[pa.RecordBatch], pa.Schema, TextIO], int]] = {
    "jsonl": _write_jsonl,
    "csv": _write_csv,
    "openai": _write_openai,
}
