"""Cuts checked rows into the tables of input batches, and sums up what the job file says about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
import pyarrow as pa

from jobs.prompts import INPUT_FIELDS
from jobs.spec import Column
from producer.columns import OwnColumns, as_json
from producer.digest import RowsDigest
from producer.rows import CheckedRow


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

    def batches(self, rows: Iterable[CheckedRow]) -> Iterator[StagedBatch]:
        """The batches as they fill up; at most one is held. Raises InputError for too many columns."""
        iterator = iter(rows)
        while pending := list(islice(iterator, self._batch_size)):
            yield self._cut(pending)

    def digest(self, identity: bytes) -> str:
        """SHA-256, hex, of the job's identity and all rows so far: ``JobFile.digest``."""
        return self._digest.hexdigest(identity, self.totals.rows)

    def columns(self) -> tuple[Column, ...]:
        """The source's own columns with the types that all rows so far settle."""
        return self._columns.settle()

    def _cut(self, rows: list[CheckedRow]) -> StagedBatch:
        batch = StagedBatch(self.totals.batches, self.totals.rows, self._table(rows))
        self._count(rows)
        return batch

    def _count(self, rows: list[CheckedRow]) -> None:
        totals = self.totals
        totals.batches += 1
        totals.rows += len(rows)
        for row in rows:
            totals.result_rows += row.n
            if row.problem is None:
                totals.max_tokens += row.max_tokens * row.n
            else:
                totals.invalid += 1

    def _table(self, rows: list[CheckedRow]) -> pa.Table:
        places = pa.array(range(self.totals.rows, self.totals.rows + len(rows)), pa.int64())
        fixed = [places, *_request_columns(rows)]
        for item, array in zip(INPUT_FIELDS[1:], fixed[1:], strict=True):
            self._digest.add(("request", item.name, ""), array, places)
        own = self._columns.stage([row.own for row in rows])
        for staged in own:
            for kind, array, where in staged.pieces:
                self._digest.add(("own", staged.name, kind), array, places if where is None else places.take(where))
        fields: list[pa.Field[Any]] = [*INPUT_FIELDS, *(staged.field for staged in own)]
        return pa.table([*fixed, *(staged.array for staged in own)], schema=pa.schema(fields))


def _request_columns(rows: list[CheckedRow]) -> list[pa.Array[Any]]:
    """The INPUT_FIELDS of these rows but the first, row_index."""
    columns = [
        [row.custom_id for row in rows],
        [row.prompt for row in rows],
        [None if row.messages is None else as_json(row.messages) for row in rows],
        [_params(row.params) if row.params else None for row in rows],
        [None if row.problem is None else row.problem.code for row in rows],
        [None if row.problem is None else row.problem.reason for row in rows],
    ]
    return [pa.array(values, item.type) for values, item in zip(columns, INPUT_FIELDS[1:], strict=True)]


def _params(params: dict[str, Any]) -> str:
    return orjson.dumps(params, option=orjson.OPT_SORT_KEYS).decode()
