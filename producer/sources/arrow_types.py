"""Arrow types between a file, Python and Parquet: what can be staged, and what stands in a prompt."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import InputError


def aligned(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of ``schema``, those that the file lacks as nulls."""
    if not schema.names:
        return batch.select([])  # which knows its number of rows
    present = set(batch.schema.names)
    arrays = [
        batch.column(item.name).cast(item.type) if item.name in present else pa.nulls(batch.num_rows, item.type)
        for item in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def staged_types(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """With the types that are staged."""
    chosen = pa.schema([schema.field(name) for name in batch.schema.names])
    return batch if batch.schema.equals(chosen) else aligned(batch, chosen)


def python_values(source: str, name: str, column: pa.Array[Any]) -> list[Any]:
    """A column as Python values, each as it would be alone; as text where Python has no such value (nanoseconds, years
    beyond 9999)."""
    kind = _in_microseconds(column.type)
    try:
        values: Any = column if kind == column.type else column.cast(kind)
        return list(values.to_pylist())
    except (ValueError, OverflowError, NotImplementedError, pa.ArrowException):
        try:
            return [_value(item, kind) for item in column]
        except (ValueError, pa.ArrowException) as error:
            raise InputError(f"{source}: values of the column {name!r} ({column.type}) cannot be read") from error


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """Of nanoseconds pandas makes values of its own, where it is installed: prompts are not to depend on that."""
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    return pa.duration("us") if kind == pa.duration("ns") else kind


def _value(item: pa.Scalar[Any], kind: pa.DataType) -> Any:
    """Raises ValueError or pa.ArrowException where not even Arrow has a text for it."""
    try:
        return (item if kind == item.type else item.cast(kind)).as_py()
    except (ValueError, OverflowError, NotImplementedError, pa.ArrowException):
        text: str = item.cast(pa.string()).as_py()
        if text.startswith("<value out of range"):
            raise ValueError(text) from None
        # As Python writes those that it has.
        return text.replace(" ", "T", 1) if pa.types.is_timestamp(kind) else text


def check_storable(source: str, column: pa.Field[Any]) -> None:
    try:
        pq.write_table(pa.table({"c": pa.array([], column.type)}), pa.MockOutputStream())
    except (pa.ArrowException, NotImplementedError) as error:
        raise InputError(
            f"{source}: the column {column.name!r} has the type {column.type}, which Parquet cannot hold: "
            f"leave it out with --drop-columns {column.name}"
        ) from error


_NEAREST: dict[pa.DataType, pa.DataType] = {
    pa.string_view(): pa.string(),
    pa.binary_view(): pa.binary(),
    pa.date64(): pa.date32(),
    pa.time32("s"): pa.time32("ms"),
}


def storable(kind: pa.DataType) -> pa.DataType:
    """The type that comes back from a Parquet file, which has no views (Polars' frames do) and no whole seconds."""
    if kind in _NEAREST:
        return _NEAREST[kind]
    if pa.types.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if pa.types.is_dictionary(kind):
        # Parquet keeps dictionaries of strings alone. Those of two batches are one dictionary in a batch or file of
        # ours, whose indexes may need more than the 8 bits that each had.
        inner = storable(kind.value_type)
        text = pa.types.is_string(inner) or pa.types.is_large_string(inner)
        return pa.dictionary(pa.int32(), pa.string(), kind.ordered) if text else inner
    if pa.types.is_struct(kind):
        return pa.struct([item.with_type(storable(item.type)) for item in kind])
    if pa.types.is_map(kind):
        return pa.map_(storable(kind.key_type), storable(kind.item_type), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        fixed: pa.DataType = pa.list_(kind.value_field.with_type(storable(kind.value_type)), kind.list_size)
        return fixed
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(kind.value_field.with_type(storable(kind.value_type)))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(kind.value_field.with_type(storable(kind.value_type)))
    return kind
