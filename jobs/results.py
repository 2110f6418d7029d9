"""The result rows: their Arrow schema, the part file of a batch, and the counts in its footer."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

import orjson
import pyarrow as pa

from jobs.errors import DamagedFileError
from jobs.job_file import Column
from jobs.parquet import open_parquet, read_parquet, to_parquet

_TIMESTAMP = pa.timestamp("us", tz="UTC")

#: The columns of every result file, in order; the source's own follow. docs/results.md describes each.
RESULT_FIELDS: tuple[pa.Field[Any], ...] = (
    pa.field("row_index", pa.int64(), nullable=False),
    pa.field("sample_index", pa.int32(), nullable=False),
    pa.field("custom_id", pa.string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("text", pa.string()),
    pa.field("finish_reason", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("completion_tokens", pa.int32()),
    pa.field("mean_logprob", pa.float32()),
    pa.field("seed", pa.int64()),
    pa.field("model", pa.string()),
    pa.field("model_revision", pa.string()),
    pa.field("attempt", pa.int32()),
    pa.field("worker", pa.string()),
    pa.field("started_at", _TIMESTAMP),
    pa.field("finished_at", _TIMESTAMP),
)
RESULT_NAMES = frozenset(item.name for item in RESULT_FIELDS)

_COUNTS_KEY = b"promptmill.counts"

#: The metadata of a staged column whose values are JSON text, to be cast to the column's type at commit.
JSON_TEXT = {b"promptmill.staged": b"json"}


@dataclass(slots=True)
class ResultRow:
    """One result row without the source's own columns."""

    row_index: int
    sample_index: int
    custom_id: str | None
    status: str
    error_code: str | None = None
    error_message: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    mean_logprob: float | None = None
    seed: int | None = None
    model: str | None = None
    model_revision: str | None = None
    attempt: int | None = None
    worker: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    #: What the row cost; no columns, but counted in the part's footer. Prompt tokens that were computed for the row,
    #: those that were taken from a row with the same beginning, and whether an identical row had the answer already.
    computed_prompt_tokens: int = 0
    shared_prompt_tokens: int = 0
    repeated: bool = False


#: The name in PartCounts, the ledger and the manifest of each row status.
STATUS_COUNTS = {"ok": "completed", "error": "failed", "cancelled": "cancelled", "expired": "expired"}


@dataclass(frozen=True, slots=True)
class PartCounts:
    """What a part holds, in result rows and tokens, and what it cost. It travels in the part's footer."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    #: As in ResultRow, of all samples. Parts of earlier versions do not say.
    computed_prompt_tokens: int = 0
    shared_prompt_tokens: int = 0
    repeated_rows: int = 0
    #: Of these rows those that a retry carried over.
    carried: PartCounts | None = None

    @property
    def rows(self) -> int:
        return self.completed + self.failed + self.cancelled + self.expired

    @classmethod
    def of(cls, rows: list[ResultRow]) -> PartCounts:
        """Prompt tokens count once for each prompt, whatever its number of samples."""
        by_status = Counter(row.status for row in rows)
        return cls(
            completed=by_status["ok"],
            failed=by_status["error"],
            cancelled=by_status["cancelled"],
            expired=by_status["expired"],
            prompt_tokens=sum(row.prompt_tokens or 0 for row in rows if row.sample_index == 0),
            completion_tokens=sum(row.completion_tokens or 0 for row in rows),
            errors=dict(Counter(str(row.error_code) for row in rows if row.error_code)),
            computed_prompt_tokens=sum(row.computed_prompt_tokens for row in rows),
            shared_prompt_tokens=sum(row.shared_prompt_tokens for row in rows),
            repeated_rows=sum(row.repeated for row in rows),
        )

    @classmethod
    def of_table(cls, rows: pa.Table) -> PartCounts:
        """Of result rows that another job has generated: what they cost is not known any more."""
        table = rows.select(["sample_index", "status", "error_code", "prompt_tokens", "completion_tokens"])
        return cls.of([ResultRow(0, row.pop("sample_index"), None, **row) for row in table.to_pylist()])

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> PartCounts:
        """A later version may count more. Raises TypeError, AttributeError."""
        known = {name: found[name] for name in found if name in cls.__dataclass_fields__}
        carried = known.pop("carried", None)
        return cls(**known, carried=None if carried is None else cls.from_json(carried))

    @classmethod
    def sum(cls, all_counts: Iterable[PartCounts]) -> PartCounts:
        """All rows together; which of them were carried over is not kept."""
        totals: Counter[str] = Counter()
        errors: Counter[str] = Counter()
        for counts in all_counts:
            errors.update(counts.errors)
            totals.update({name: getattr(counts, name) for name in _NUMBERS})
        return cls(**{name: totals[name] for name in _NUMBERS}, errors=dict(errors))  # type: ignore[arg-type]

    @property
    def generated(self) -> PartCounts:
        """Without the rows that were carried over."""
        if self.carried is None:
            return self
        numbers = {name: getattr(self, name) - getattr(self.carried, name) for name in _NUMBERS}
        return PartCounts(**numbers, errors=dict(Counter(self.errors) - Counter(self.carried.errors)))

    def to_json(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in (*_NUMBERS, "errors")}
        return found if self.carried is None else {**found, "carried": self.carried.to_json()}


_NUMBERS = tuple(name for name, item in PartCounts.__dataclass_fields__.items() if item.type == "int")


def result_schema(columns: tuple[Column, ...]) -> pa.Schema:
    """The schema of a job's result files: the same for each of its parts."""
    own: list[pa.Field[Any]] = [pa.field(column.name, arrow_type(column)) for column in columns]
    return pa.schema([*RESULT_FIELDS, *own])


def result_name(source: str, taken: set[str]) -> str:
    """The name that a source column gets in the results: ``input_`` goes before it while it clashes."""
    name = source
    while name in taken:
        name = f"input_{name}"
    return name


_CAST_TYPES: dict[str, pa.DataType] = {
    "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "string": pa.string(), "json": pa.string(),
}  # fmt: skip


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type of a source column in the results."""
    if column.encoding in _CAST_TYPES:
        return _CAST_TYPES[column.encoding]
    if column.arrow is None:
        return pa.string()
    data_type: pa.DataType = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(column.arrow))).field(0).type
    return data_type


def encode_arrow_type(data_type: pa.DataType) -> str:
    """An Arrow type as text that JSON can carry; ``Column.arrow``."""
    return base64.b64encode(pa.schema([pa.field("c", data_type)]).serialize().to_pybytes()).decode()


def write_part(
    rows: list[ResultRow], own: pa.Table, columns: tuple[Column, ...], first_row: int, carried: pa.Table | None = None
) -> bytes:
    """The Parquet bytes of a part.

    ``rows`` are sorted here by (row_index, sample_index); ``own`` holds the batch's source columns as
    staged, one row for each prompt, the first of which has row_index ``first_row``. ``carried`` are result rows of a
    retry that stay as they are.
    """
    rows = sorted(rows, key=lambda row: (row.row_index, row.sample_index))
    schema = result_schema(columns)
    arrays: list[Any] = [pa.array([getattr(row, item.name) for row in rows], item.type) for item in RESULT_FIELDS]
    position = pa.array([row.row_index - first_row for row in rows], pa.int64())
    for column in columns:
        if column.source in own.column_names:
            arrays.append(_cast(own, column).take(position))
        else:  # the column first appears in a later batch, or the input is lost
            arrays.append(pa.array([None] * len(rows), arrow_type(column)))
    table = pa.table(arrays, schema=schema)
    counts = PartCounts.of(rows)
    if carried is not None:
        table = pa.concat_tables([table, carried.cast(schema)])
        table = table.sort_by([("row_index", "ascending"), ("sample_index", "ascending")])
        of_carried = PartCounts.of_table(carried)
        counts = replace(PartCounts.sum([counts, of_carried]), carried=of_carried)
    return to_parquet(table.replace_schema_metadata({_COUNTS_KEY: orjson.dumps(counts.to_json())}))


def read_row_count(content: bytes) -> int:
    """Rows of a Parquet file, from its footer. Raises DamagedFileError."""
    try:
        return int(open_parquet(content).metadata.num_rows)
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"the file's footer cannot be read: {error}") from error


def read_part(content: bytes) -> pa.Table:
    """A part's rows. Raises DamagedFileError where the bytes are not a whole Parquet file."""
    try:
        return read_parquet(content)
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedFileError(f"the part cannot be read: {error}") from error


def part_counts(content: bytes) -> PartCounts:
    """The counts in a part's footer. Raises DamagedFileError."""
    try:
        metadata = open_parquet(content).metadata.metadata or {}
        return PartCounts.from_json(orjson.loads(metadata[_COUNTS_KEY]))
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"the part's footer cannot be read: {error}") from error


def _cast(own: pa.Table, column: Column) -> pa.ChunkedArray[Any]:
    """A source column from its staged form to its form in the results.

    A JSON column is staged as the kind that all its values in the batch had, or as JSON text.
    """
    staged, target = own.column(column.source), cast(Any, arrow_type(column))
    if column.encoding == "json" and own.schema.field(column.source).metadata != JSON_TEXT:
        texts = [None if value is None else orjson.dumps(value).decode() for value in staged.to_pylist()]
        return pa.chunked_array([pa.array(texts, target)])
    if column.encoding == "list":
        lists = [None if text is None else orjson.loads(text) for text in staged.to_pylist()]
        if pa.types.is_floating(target.value_type):
            lists = [items and [None if item is None else float(item) for item in items] for items in lists]
        return pa.chunked_array([pa.array(lists, target)])
    # Integers widen to the nearest float.
    return staged.cast(target, safe=column.encoding != "float64")
