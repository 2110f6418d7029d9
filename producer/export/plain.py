"""Result columns as JSON and CSV can hold them: text, numbers, booleans, and lists and objects of these.

Times are RFC 3339 in UTC; those of a column without a time zone have no offset. Decimals are text, digit by digit,
binary is base64, durations are seconds, and a map is a list of ``{"key", "value"}``.
"""

from __future__ import annotations

import base64
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_BINARY = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def plain(array: pa.Array[Any]) -> pa.Array[Any]:
    """``array`` with its values as JSON can hold them, but for NaN and infinities, which stay."""
    kind: Any = array.type
    if isinstance(array, pa.ExtensionArray):
        return _texts(array, str) if kind.extension_name == "arrow.uuid" else plain(array.storage)
    if types.is_dictionary(kind):
        return plain(array.cast(kind.value_type))
    if types.is_struct(kind):
        return _struct(cast(pa.StructArray, array))
    if types.is_map(kind):
        entry = pa.struct([pa.field("key", kind.key_type), pa.field("value", kind.item_type)])
        return plain(array.cast(pa.list_(entry)))
    if types.is_nested(kind) and hasattr(array, "flatten"):
        return _list(array)
    return _leaf(array)


def _struct(array: pa.StructArray) -> pa.Array[Any]:
    names = [item.name for item in array.type]
    if not names:
        return array
    return pa.StructArray.from_arrays(
        [plain(array.field(place)) for place in range(len(names))], names=names, mask=array.is_null()
    )


def _list(array: Any) -> pa.Array[Any]:
    lengths = pc.fill_null(pc.list_value_length(array), 0).cast(pa.int64())
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
    return pa.LargeListArray.from_arrays(offsets, plain(array.flatten()), mask=array.is_null())


def _leaf(array: pa.Array[Any]) -> pa.Array[Any]:
    kind: Any = array.type
    if types.is_timestamp(kind):
        # As text without a zone: that needs no database of time zones, which small containers lack.
        text = pc.replace_substring(array.cast(pa.int64()).cast(pa.timestamp(kind.unit)).cast(pa.string()), " ", "T")
        return joined(text, "Z") if kind.tz else text
    if types.is_date(kind) or types.is_time(kind) or types.is_decimal(kind) or types.is_string_view(kind):
        return array.cast(pa.string())
    if types.is_duration(kind):
        return pc.divide(array.cast(pa.int64()).cast(pa.float64(), safe=False), float(_UNITS[kind.unit]))
    if types.is_float16(kind):
        return array.cast(pa.float32())
    if any(is_kind(kind) for is_kind in _BINARY):
        return _texts(array, lambda value: base64.b64encode(value).decode())
    if types.is_interval(kind):
        return _texts(array, str)
    return array


def joined(*parts: Any) -> pa.Array[Any]:
    """Strings and columns of strings put together, row by row; null where one is."""
    join: Any = pc.binary_join_element_wise  # its stubs know columns alone
    together: pa.Array[Any] = join(*parts, "")
    return together


def _texts(array: pa.Array[Any], text: Any) -> pa.Array[Any]:
    return pa.array([None if value is None else text(value) for value in array.to_pylist()], pa.string())
