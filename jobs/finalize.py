"""The end of a job: from parts to the dataset, its manifest and ``_SUCCESS``.

Every step is a put-if-absent of something that depends only on what the store holds already, so that a
finalizer may die between any two of them and another goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass

import orjson
import pyarrow as pa

from jobs import layout
from jobs.errors import DamagedFileError, NotFoundError
from jobs.inputs import lost_batch, read_input, unrun_batch
from jobs.job_file import JobFile
from jobs.parallel import grouped, in_parallel
from jobs.parquet import ParquetBuffer
from jobs.parts import Part, commit_part, find_part, working_files
from jobs.results import PartCounts, read_part, read_row_count, result_schema
from jobs.spec import RowError, Status, now
from jobs.store import Store

MANIFEST_VERSION = 1

#: The size that a result file is planned for, in bytes of its parts.
TARGET_FILE_BYTES = 128 * 2**20

#: Parts that make one row group: 64 of 256 rows are 16,384 rows.
_PARTS_PER_ROW_GROUP = 64

#: The row status that the end of a job gives to rows which nobody generated.
_ROW_STATUS = {Status.CANCELLED: "cancelled", Status.EXPIRED: "expired"}

Progress = Callable[[], None]


class MissingPartsError(DamagedFileError):
    """Raised when a job whose batches are all done lacks parts.

    ``batches`` must be generated again; ``counts`` are those of the parts that are there, as the ledger counts them.
    """

    def __init__(self, job: str, batches: list[int], counts: PartCounts) -> None:
        self.batches = batches
        self.counts = counts
        super().__init__(f"job {job}: the parts of {len(batches)} finished batches are gone or damaged")


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """The batches ``first`` to ``last`` (inclusive) make one result file of ``rows`` rows."""

    first: int
    last: int
    rows: int


def finalize(
    store: Store,
    job: JobFile,
    ending: Status,
    *,
    alive: Progress = lambda: None,
    published: Callable[[PartCounts], None] = lambda counts: None,
) -> PartCounts:
    """Publish the dataset of ``job``, remove its parts, and return its counts.

    ``ending`` is how the job ends; ``alive`` is called between steps and may raise to stop; ``published`` is
    called with the counts once the dataset is whole, before the parts go. Raises
    MissingPartsError, DamagedFileError (the counts do not add up) or StoreUnavailableError.
    """
    success = layout.success_file(job.id)
    if not store.exists(success):
        try:
            _publish(store, job, ending, alive)
        except (NotFoundError, MissingPartsError):
            # Another finalizer was quicker, and has removed the parts after its _SUCCESS.
            if not store.exists(success):
                raise
    try:
        counts = manifest_counts(store, job.id)
    except NotFoundError as error:
        raise DamagedFileError(f"job {job.id}: {success} is there, and its manifest is not") from error
    published(counts)
    store.delete(working_files(store, job.stage))
    return counts


def _publish(store: Store, job: JobFile, ending: Status, alive: Progress) -> None:
    parts = _all_parts(store, job, ending, alive)
    counts = PartCounts.sum(part.counts for part in parts)
    _check_total(job, counts)
    files, plan = [], _plan(store, job, parts)
    for index, planned in enumerate(plan):
        alive()
        files.append(_publish_file(store, job, index, planned, parts, alive))
    if (planned_rows := sum(planned.rows for planned in plan)) != counts.rows:
        raise DamagedFileError(f"job {job.id}: its plan has {planned_rows} rows, and its parts hold {counts.rows}")
    _publish_manifest(store, job, ending, counts, files)
    store.put_if_absent(layout.success_file(job.id), b"")


def manifest_counts(store: Store, job: str) -> PartCounts:
    """The counts of an ended job. Raises NotFoundError or DamagedFileError."""
    try:
        manifest = orjson.loads(store.get(layout.manifest_file(job)))
        rows, tokens = manifest["rows"], manifest["tokens"]
        # Manifests of earlier versions do not have it.
        engine = manifest.get("engine", {})
        return PartCounts(
            completed=rows["completed"],
            failed=rows["failed"],
            cancelled=rows["cancelled"],
            expired=rows["expired"],
            prompt_tokens=tokens["prompt"],
            completion_tokens=tokens["completion"],
            errors=manifest["errors"],
            computed_prompt_tokens=engine.get("computed_prompt_tokens", 0),
            shared_prompt_tokens=engine.get("shared_prompt_tokens", 0),
            repeated_rows=engine.get("repeated_rows", 0),
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{store.locate(layout.manifest_file(job))} cannot be read: {error}") from error


def _all_parts(store: Store, job: JobFile, ending: Status, alive: Progress) -> list[Part]:
    """The part of each batch in order; where the job did not complete, those that nobody ran are put first."""

    def find(batch: int) -> Part | None:
        part = find_part(store, job, batch)
        if part is None and ending in _ROW_STATUS:
            return commit_part(store, job, batch, _fill(store, job, batch, _ROW_STATUS[ending]))
        return part

    found = []
    for part in in_parallel(find, range(job.batches)):
        alive()
        found.append(part)
    parts = [part for part in found if part is not None]
    if len(parts) < job.batches:
        missing = [batch for batch, part in enumerate(found) if part is None]
        raise MissingPartsError(job.id, missing, _counted(job, parts))
    return parts


def _fill(store: Store, job: JobFile, batch: int, status: str) -> bytes:
    try:
        return unrun_batch(job, batch, read_input(store, job, batch), status)
    except DamagedFileError as error:
        store.require()
        return lost_batch(store, job, batch, str(error))


def _check_total(job: JobFile, counts: PartCounts) -> None:
    """P5. Rows whose input was lost count once each: their ``n`` cannot be read any more."""
    lost = counts.errors.get(RowError.INPUT_LOST, 0)
    if counts.rows != job.result_rows and not (lost and job.rows <= counts.rows < job.result_rows):
        raise DamagedFileError(f"job {job.id}: its parts hold {counts.rows} rows where {job.result_rows} were accepted")


def _plan(store: Store, job: JobFile, parts: list[Part]) -> list[PlannedFile]:
    """The stored plan; this call's own if nobody has put one yet."""
    path = layout.plan_file(job.stage)
    mine = [asdict(planned) for planned in plan_files(parts)]
    store.put_if_absent(path, orjson.dumps({"files": mine}))
    try:
        files = orjson.loads(store.get(path))["files"]
        plan = [PlannedFile(planned["first"], planned["last"], planned["rows"]) for planned in files]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{store.locate(path)} cannot be read: {error}") from error
    if [batch for planned in plan for batch in range(planned.first, planned.last + 1)] != [*range(job.batches)]:
        raise DamagedFileError(f"{store.locate(path)} does not hold each of {job.batches} batches once, in order")
    return plan


def plan_files(parts: list[Part], target: int = TARGET_FILE_BYTES) -> list[PlannedFile]:
    """Cut the parts, in order, into files of about ``target`` bytes."""
    files: list[PlannedFile] = []
    first = rows = size = 0
    for part in parts:
        if size and size + part.size > target:
            files.append(PlannedFile(first, part.batch - 1, rows))
            first, rows, size = part.batch, 0, 0
        rows, size = rows + part.counts.rows, size + part.size
    return [*files, PlannedFile(first, parts[-1].batch, rows)]


def _publish_file(
    store: Store, job: JobFile, index: int, planned: PlannedFile, parts: list[Part], alive: Progress
) -> dict[str, object]:
    """Merge the planned parts into one result file; its entry in the manifest."""
    path = layout.results_file(job.id, index)
    try:
        content = store.get(path)
    except NotFoundError:
        merged = _merge(store, job, planned, parts, alive)
        content = merged if store.put_if_absent(path, merged) else store.get(path)
    rows = read_row_count(content)
    if rows != planned.rows:
        raise DamagedFileError(f"{store.locate(path)} holds {rows} rows where {planned.rows} were planned")
    name = path.rsplit("/", 1)[-1]
    return {"path": name, "rows": rows, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _merge(store: Store, job: JobFile, planned: PlannedFile, parts: list[Part], alive: Progress) -> bytes:
    """The rows of the planned parts, in order of row_index and sample_index, as one Parquet file."""
    schema = result_schema(job.columns)
    merged = ParquetBuffer(schema)
    chosen = parts[planned.first : planned.last + 1]
    tables_of_parts = in_parallel(lambda part: _read_again(store, job, part, parts), chosen)
    for tables in grouped(tables_of_parts, _PARTS_PER_ROW_GROUP):
        alive()
        merged.write(pa.concat_tables([table.cast(schema) for table in tables]))
    return merged.finish()


def _read_again(store: Store, job: JobFile, part: Part, parts: list[Part]) -> pa.Table:
    """The rows of one of ``parts``, all of which could be read a while ago. One that cannot be any more is set aside.

    Raises MissingPartsError then.
    """
    try:
        return read_part(store.get(part.path))
    except DamagedFileError:
        find_part(store, job, part.batch)  # which sets it aside
        others = [other for other in parts if other is not part]
        raise MissingPartsError(job.id, [part.batch], _counted(job, others)) from None


def _counted(job: JobFile, parts: list[Part]) -> PartCounts:
    """What the ledger counts while a job runs: the rows of its parts, and all that a retry carried over."""
    carried = [PartCounts(**job.retry.carried.model_dump())] if job.retry else []
    return PartCounts.sum([*carried, *(part.counts.generated for part in parts)])


def _publish_manifest(
    store: Store, job: JobFile, ending: Status, counts: PartCounts, files: list[dict[str, object]]
) -> None:
    manifest = {
        "version": MANIFEST_VERSION,
        "job": job.id,
        "status": ending,
        "spec": job.spec.model_dump(mode="json"),
        "digest": job.digest,
        "created_at": job.created_at.isoformat(),
        "ended_at": now().isoformat(),
        "rows": {
            "total": counts.rows,
            "completed": counts.completed,
            "failed": counts.failed,
            "cancelled": counts.cancelled,
            "expired": counts.expired,
        },
        "tokens": {"prompt": counts.prompt_tokens, "completion": counts.completion_tokens},
        "engine": {
            "computed_prompt_tokens": counts.computed_prompt_tokens,
            "shared_prompt_tokens": counts.shared_prompt_tokens,
            "repeated_rows": counts.repeated_rows,
        },
        "errors": counts.errors,
        **({"retry": job.retry.model_dump(mode="json")} if job.retry else {}),
        "batches": job.batches,
        "files": files,
        "schema": str(result_schema(job.columns)),
    }
    content = orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n"
    path = layout.manifest_file(job.id)
    if not store.put_if_absent(path, content) and (found := manifest_counts(store, job.id).rows) != counts.rows:
        raise DamagedFileError(f"{store.locate(path)} names {found} rows, and the parts hold {counts.rows}")
