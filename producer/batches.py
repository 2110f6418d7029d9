"""Cuts checked rows into the tables of input batches, and sums up what the job file says about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
import pyarrow as pa

from jobs.job_file import Column
from jobs.prompts import INPUT_FIELDS
from jobs.results import arrow_type
from producer.columns import OwnColumns, as_json
from producer.digest import RowsDigest
from producer.requests import CheckedRows


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """One input batch, ready for ``jobs.prompts.write_batch``. ``first_row`` is its lowest row_index."""

    index: int
    first_row: int
    table: pa.Table


@dataclass(slots=True)
class Totals:
    """Sums over the rows staged so far. An invalid row has one result row."""

    rows: int = 0
    result_rows: int = 0
    batches: int = 0
    invalid: int = 0
    #: The sum of ``max_tokens`` x ``n``; an invalid row is charged nothing.
    max_tokens: int = 0


class BatchBuilder:
    """Builds the batches of one job. ``types`` are the source's (``Source.types``).

    A batch has the ``src:`` columns known when it was cut: a column that first appears in a later row of a
    JSON source is absent from earlier batches, where all its values are null.
    """

    def __init__(self, batch_size: int, types: Mapping[str, pa.DataType] | None = None) -> None:
        self.totals = Totals()
        self._batch_size = batch_size
        self._columns = OwnColumns(types)
        self._digest = RowsDigest()

    def batches(self, blocks: Iterable[CheckedRows]) -> Iterator[StagedBatch]:
        """The batches as they fill up. Raises InputError for too many columns."""
        pending, size = CheckedRows(), self._batch_size
        for block in blocks:
            pending.extend(block)
            full = len(pending) - len(pending) % size
            for start in range(0, full, size):
                yield self._cut(pending.part(start, start + size))
            if full:
                pending = pending.part(full)
        if pending:
            yield self._cut(pending)

    def digest(self, identity: bytes) -> str:
        """SHA-256, hex, of the job's identity and all rows so far: ``JobFile.digest``."""
        types = {column.source: str(arrow_type(column)) for column in self.columns()}
        return self._digest.hexdigest(identity, self.totals.rows, types)

    def columns(self) -> tuple[Column, ...]:
        """The source's own columns with the types that all rows so far settle."""
        return self._columns.settle()

    def _cut(self, rows: CheckedRows) -> StagedBatch:
        batch = StagedBatch(self.totals.batches, self.totals.rows, self._table(rows))
        self._count(rows)
        return batch

    def _count(self, rows: CheckedRows) -> None:
        totals = self.totals
        totals.batches += 1
        totals.rows += len(rows)
        totals.result_rows += sum(rows.n)
        totals.invalid += len(rows) - rows.problems.count(None)
        totals.max_tokens += rows.output_tokens()

    def _table(self, rows: CheckedRows) -> pa.Table:
        first = self.totals.rows
        places = range(first, first + len(rows))
        fixed = [pa.array(places, pa.int64()), *_request_columns(rows)]
        for item, array in zip(INPUT_FIELDS[1:], fixed[1:], strict=True):
            self._digest.add(("request", item.name, ""), array, places)
        own = self._columns.stage(rows.own)
        for staged in own:
            for kind, array, where in staged.pieces:
                found = places if where is None else [first + place for place in where]
                self._digest.add(("own", staged.name, kind), array, found)
        fields: list[pa.Field[Any]] = [*INPUT_FIELDS, *(staged.field for staged in own)]
        return pa.table([*fixed, *(staged.array for staged in own)], schema=pa.schema(fields))


def _request_columns(rows: CheckedRows) -> list[pa.Array[Any]]:
    """The INPUT_FIELDS of these rows but the first, row_index."""
    nothing: list[Any] = []
    columns = [
        rows.ids,
        rows.prompts,
        [messages and as_json(messages) for messages in rows.messages] if any(rows.messages) else nothing,
        [_params(params) if params else None for params in rows.params] if any(rows.params) else nothing,
        [problem and problem.code for problem in rows.problems] if any(rows.problems) else nothing,
        [problem and problem.reason for problem in rows.problems] if any(rows.problems) else nothing,
    ]
    return [
        pa.array(values, item.type) if values else pa.nulls(len(rows), cast(Any, item.type))
        for values, item in zip(columns, INPUT_FIELDS[1:], strict=True)
    ]


def _params(params: dict[str, Any]) -> str:
    return orjson.dumps(params, option=orjson.OPT_SORT_KEYS).decode()
