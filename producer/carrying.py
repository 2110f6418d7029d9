"""The stage of a retry: the parent's rows sorted into those that stay and those that are generated again.

Batches in which nothing is to be generated are staged as finished parts; of the others the rows that stay are staged
beside the input. Everything is copied: the new job needs nothing of its parent once it is accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, Literal

import pyarrow as pa

from jobs import __version__, layout
from jobs.errors import DamagedFileError, InputError, NotFoundError
from jobs.inputs import Carried, write_carried
from jobs.job_file import CarriedCounts, JobFile, Retry
from jobs.parallel import in_parallel
from jobs.prompts import Prompt, read_batch
from jobs.results import PartCounts, part_counts, write_part
from jobs.spec import RowError, now
from jobs.stages import new_stage
from jobs.store import Store
from producer.results import read_published

RowStatus = Literal["error", "cancelled", "expired"]


@dataclass(frozen=True, slots=True)
class _Batch:
    """What became of one batch: ``part`` are the counts of its part where nothing is to be generated."""

    index: int
    carried: PartCounts
    part: PartCounts | None = None
    retried: int = 0
    max_tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class RetryStage:
    """The files of a retry of ``parent``, and the sums of what is in them. ``statuses`` are to be generated again.

    ``parts`` has the counts of the batches that are done already; ``refused`` counts, by their error code, the rows
    that cannot be tried again: they were invalid from the start, or their input cannot be read any more.
    """

    def __init__(self, store: Store, parent: JobFile, statuses: tuple[RowStatus, ...]) -> None:
        self.name = new_stage()
        self.parts: dict[int, PartCounts] = {}
        self.retried = 0
        self.refused: Counter[str] = Counter()
        self.parent = parent
        self._store, self._statuses = store, statuses
        self._max_tokens = 0
        self._carried = PartCounts()

    def fill(self, progress: Callable[[int], None]) -> None:
        """Write all files; ``progress`` is told the input rows so far.

        Raises DamagedFileError where the parent's dataset is not whole.
        """
        count = 0
        for batch in in_parallel(self._stage, batches_of(self._store, self.parent)):
            self._add(batch)
            count += 1
            progress(self.parent.batch_rows(batch.index).stop)
        if count != self.parent.batches:
            raise self._lacks_rows()

    def job(self, digest: str, deadline: datetime | None) -> JobFile:
        """The job as it would be accepted, but for its id: the parent's settings, without its deadline."""
        parent, carried = self.parent, self._carried.to_json()
        retry = Retry(
            parent=parent.id,
            root=parent.seed_root,
            statuses=self._statuses,
            retried=self.retried,
            carried=CarriedCounts(**{name: carried[name] for name in CarriedCounts.model_fields}),
            batches=parent.batches - len(self.parts),
        )
        changed: dict[str, Any] = {
            "stage": self.name,
            "created_at": now(),
            "spec": parent.spec.model_copy(update={"deadline": deadline}),
            "digest": digest,
            "max_tokens_total": self._max_tokens,
            "producer_version": __version__,
            "retry": retry,
        }
        return parent.model_copy(update=changed)

    def _add(self, batch: _Batch) -> None:
        if batch.part is not None:
            self.parts[batch.index] = batch.part
        self.retried += batch.retried
        self.refused.update(batch.refused)
        self._max_tokens += batch.max_tokens
        self._carried = PartCounts.sum([self._carried, batch.carried])

    def _stage(self, item: tuple[int, pa.Table]) -> _Batch:
        """Write the files of one batch."""
        index, rows = item
        if list(dict.fromkeys(_indexes(rows))) != list(self.parent.batch_rows(index)):
            raise self._lacks_rows()
        wanted = {at for at, status in enumerate(rows["status"].to_pylist()) if status in self._statuses}
        prompts = self._copy_input(index, needed=bool(wanted))
        retried, refused = self._sort_out(rows, wanted, prompts)
        carried = rows.take(pa.array([at for at in range(rows.num_rows) if at not in retried], pa.int64()))
        counts = PartCounts.of_table(carried)
        if not retried:
            part = write_part([], pa.table({}), self.parent.columns, self.parent.batch_rows(index).start, carried)
            self._put(layout.part(self.name, index), part)
            return _Batch(index, counts, part=part_counts(part), refused=refused)
        samples = _missing_samples(rows, retried, carried, prompts)
        self._put(layout.carried_batch(self.name, index), write_carried(Carried(carried, samples)))
        tokens = sum(prompts[row].sampling.max_tokens * len(chosen) for row, chosen in samples.items())
        return _Batch(index, counts, None, sum(map(len, samples.values())), tokens, refused)

    def _copy_input(self, index: int, *, needed: bool) -> dict[int, Prompt]:
        """Copy a batch's input as it is; if it is ``needed`` its rows by row_index, none where they cannot be read."""
        try:
            content = self._store.get(layout.input_batch(self.parent.stage, index))
        except NotFoundError:
            self._store.require()
            return {}
        self._put(layout.input_batch(self.name, index), content)
        try:
            prompts = read_batch(content, self.parent.spec.sampling).prompts if needed else []
        except DamagedFileError:
            return {}
        right = [prompt.row_index for prompt in prompts] == list(self.parent.batch_rows(index))
        return {prompt.row_index: prompt for prompt in prompts} if right else {}

    def _sort_out(self, rows: pa.Table, wanted: set[int], prompts: dict[int, Prompt]) -> tuple[set[int], Counter[str]]:
        """Those of the ``wanted`` rows, by position, that can be generated; the codes of the others."""
        retried, refused = set(), Counter[str]()
        indexes, codes = _indexes(rows), rows["error_code"].to_pylist()
        for at in wanted:
            prompt = prompts.get(indexes[at])
            if prompt is None or (prompt.error_code is not None and codes[at] == prompt.error_code):
                refused[codes[at] or str(RowError.INPUT_LOST)] += 1
            else:
                retried.add(at)
        return retried, refused

    def _put(self, path: str, content: bytes) -> None:
        if not self._store.put_if_absent(path, content):
            raise InputError(f"stage {self.name} is in use by another retry")

    def _lacks_rows(self) -> DamagedFileError:
        where = self._store.locate(layout.results_prefix(self.parent.id))
        return DamagedFileError(f"{where} lacks rows of job {self.parent.id}: nothing can be carried over from it")


def _missing_samples(
    rows: pa.Table, retried: set[int], carried: pa.Table, prompts: dict[int, Prompt]
) -> dict[int, tuple[int, ...]]:
    """The samples to generate. A row whose input was lost has one result row, whatever its ``n``: so they are those
    that are not there."""
    indexes = _indexes(rows)
    there = set(zip(_indexes(carried), carried["sample_index"].to_pylist(), strict=True))
    return {
        row: tuple(sample for sample in prompts[row].samples if (row, sample) not in there)
        for row in sorted({indexes[at] for at in retried})
    }


def _indexes(rows: pa.Table) -> list[int]:
    indexes: list[Any] = rows["row_index"].to_pylist()
    return indexes


def batches_of(store: Store, job: JobFile) -> Iterator[tuple[int, pa.Table]]:
    """The result rows of an ended job, batch by batch. Raises DamagedFileError."""
    held: list[pa.Table] = []
    current = 0
    for table in read_published(store, job):
        start = 0
        for batch, run in groupby(index // job.spec.batch_size for index in _indexes(table)):
            if held and batch != current:
                yield current, pa.concat_tables(held)
                held = []
            count = sum(1 for _ in run)
            held.append(table.slice(start, count))
            current, start = batch, start + count
    if held:
        yield current, pa.concat_tables(held)
