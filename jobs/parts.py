"""The parts of a job: committing one, finding one, and setting a damaged one aside."""

from __future__ import annotations

from dataclasses import dataclass

from jobs import layout
from jobs.errors import DamagedFileError, NotFoundError
from jobs.job_file import JobFile
from jobs.results import PartCounts, part_counts, read_part
from jobs.store import Store
from jobs.telemetry.counters import Reason, recoveries


@dataclass(frozen=True, slots=True)
class Part:
    """A part that is in the store and can be read; ``size`` in bytes."""

    batch: int
    path: str
    counts: PartCounts
    size: int


def find_part(store: Store, job: JobFile, batch: int) -> Part | None:
    """The part of ``batch``, or None. A damaged one is set aside: a marker is put beside it, the file stays."""
    generation = 0
    while True:
        path = layout.part(job.stage, batch, generation)
        try:
            return _read(store, job, batch, path)
        except NotFoundError:
            return None
        except DamagedFileError:
            _set_aside(store, job, batch, generation)
            generation += 1


def commit_part(store: Store, job: JobFile, batch: int, content: bytes) -> Part:
    """Put the results of ``batch``; the part that counts afterwards, which is another's if that came first."""
    generation = 0
    while True:
        path = layout.part(job.stage, batch, generation)
        if store.put_if_absent(path, content):
            return Part(batch, path, part_counts(content), len(content))
        try:
            return _read(store, job, batch, path)
        except DamagedFileError:
            _set_aside(store, job, batch, generation)
            generation += 1


def _set_aside(store: Store, job: JobFile, batch: int, generation: int) -> None:
    if store.put_if_absent(layout.damaged_part(job.stage, batch, generation), b""):
        recoveries.count(Reason.PART_DAMAGED)


def _read(store: Store, job: JobFile, batch: int, path: str) -> Part:
    """A part that was read whole: its footer does not tell of a bit that flipped in its pages.

    Raises NotFoundError, and DamagedFileError where it cannot be read or holds the rows of another batch.
    """
    content = store.get(path)
    if read_part(content)["row_index"].unique().to_pylist() != list(job.batch_rows(batch)):
        raise DamagedFileError(f"{store.locate(path)} holds the rows of another batch")
    return Part(batch, path, part_counts(content), len(content))


def list_parts(store: Store, stage: str) -> dict[int, str]:
    """The path of the last generation of each batch's part; whether it can be read is not checked."""
    newest: dict[int, tuple[int, str]] = {}
    for item in store.list(layout.parts_prefix(stage)):
        found = layout.batch_of_part(item.path)
        if found is None:
            continue
        batch, generation = found
        if batch not in newest or generation > newest[batch][0]:
            newest[batch] = (generation, item.path)
    return {batch: path for batch, (_, path) in sorted(newest.items())}


def working_files(store: Store, stage: str) -> list[str]:
    """What a job needs only until its dataset is whole: its parts, and the rows that a retry carried over."""
    carried = [item.path for item in store.list(layout.carried_prefix(stage))]
    return [*list_parts(store, stage).values(), *carried]
