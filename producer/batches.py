"""Cuts checked rows into the tables of input batches, and sums up what the job file says about them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from jobs.prompts import INPUT_FIELDS, SOURCE_PREFIX
from jobs.spec import Column
from producer.columns import ColumnTypes, as_json
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
        self._columns = ColumnTypes(types)
        self._rows_hash = hashlib.sha256()

    def batches(self, rows: Iterable[CheckedRow]) -> Iterator[StagedBatch]:
        """The batches as they fill up; at most one is held. Raises InputError for too many columns."""
        pending: list[CheckedRow] = []
        for row in rows:
            pending.append(row)
            if len(pending) == self._batch_size:
                yield self._cut(pending)
                pending = []
        if pending:
            yield self._cut(pending)

    def digest(self, identity: bytes) -> str:
        """SHA-256, hex, of the job's identity and all rows so far: ``JobFile.digest``."""
        return hashlib.sha256(hashlib.sha256(identity).digest() + self._rows_hash.digest()).hexdigest()

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
        fixed = self._fixed_columns(rows)
        arrays = [pa.array(fixed[item.name], item.type) for item in INPUT_FIELDS]
        fields: list[pa.Field[Any]] = list(INPUT_FIELDS)
        self._columns.see(dict.fromkeys(name for row in rows for name in row.own))
        own = {name: self._columns.stage(name, [row.own.get(name) for row in rows]) for name in self._columns.names}
        for name, array in own.items():
            arrays.append(array)
            fields.append(pa.field(SOURCE_PREFIX + name, array.type))
        self._hash(fixed, own)
        return pa.table(arrays, schema=pa.schema(fields))

    def _fixed_columns(self, rows: list[CheckedRow]) -> dict[str, list[Any]]:
        problems = [row.problem for row in rows]
        first = self.totals.rows
        return {
            "row_index": list(range(first, first + len(rows))),
            "custom_id": [row.custom_id for row in rows],
            "prompt": [row.prompt for row in rows],
            "messages": [None if row.messages is None else as_json(row.messages) for row in rows],
            "params": [_params(row.params) if row.params else None for row in rows],
            "error_code": [problem and problem.code for problem in problems],
            "error_message": [problem and problem.reason for problem in problems],
        }

    def _hash(self, fixed: dict[str, list[Any]], own: dict[str, pa.Array[Any]]) -> None:
        """Adds the canonical rows to the digest: one JSON array each, own columns by name, nulls left out.

        Nulls are left out because a column that nobody has named yet is one; so the digest depends neither on
        where batches are cut nor on the order of keys.
        """
        names = sorted(own)
        texts = [[value if value is None else str(value) for value in own[name].to_pylist()] for name in names]
        fields = [fixed[item.name] for item in INPUT_FIELDS[1:]]
        for position, row in enumerate(zip(*fields, strict=True)):
            values = {
                name: text[position] for name, text in zip(names, texts, strict=True) if text[position] is not None
            }
            self._rows_hash.update(orjson.dumps([*row, values]))
            self._rows_hash.update(b"\n")


def _params(params: dict[str, Any]) -> str:
    return orjson.dumps(params, option=orjson.OPT_SORT_KEYS).decode()
