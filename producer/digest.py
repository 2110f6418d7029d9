"""The digest of a job's rows: the same wherever batches are cut, and whatever the order of keys was.

Each column has streams of its own, one for each kind of value: which rows have a value, how long the values are, and
their bytes, read from Arrow's buffers. Nulls are left out, for a column that no row has named yet is one; of a column
that has nothing else only its name and type count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: ``(request or own, column, kind of value)``
Key = tuple[str, str, str]


class RowsDigest:
    """Collects the columns of batch after batch."""

    def __init__(self) -> None:
        self._streams: dict[Key, _Stream] = {}

    def add(self, key: Key, values: pa.Array[Any], places: Sequence[int]) -> None:
        """``places`` are the row indexes of the values, ascending; a range, or values without nulls."""
        if values.null_count == len(values):
            return
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
        stream.add(values, places)

    def hexdigest(self, identity: bytes, rows: int, columns: Mapping[str, str]) -> str:
        """SHA-256, hex, of the job's identity, the number of rows and all values so far.

        ``columns`` are all own columns and their types: one whose values are all null is a column of the results too.
        """
        whole = hashlib.sha256(hashlib.sha256(identity).digest())
        whole.update(rows.to_bytes(8, "big"))
        filled = {name for owner, name, _ in self._streams if owner == "own"}
        empty = {("own", name, kind): _Stream() for name, kind in columns.items() if name not in filled}
        for key, stream in sorted((self._streams | empty).items()):
            whole.update(hashlib.sha256("\0".join(key).encode()).digest() + stream.digest(rows))
        return whole.hexdigest()


class _Stream:
    """Values of one kind. Those of nested types have a stream for each level."""

    def __init__(self) -> None:
        self._add_values: Callable[[Any], None] | None = None
        #: A byte for each row so far: 1 where it has a value.
        self._present = hashlib.sha256()
        self._lengths = hashlib.sha256()
        self._bytes = hashlib.sha256()
        self._rows = 0
        self._inner: dict[str, _Stream] = {}

    def digest(self, rows: int) -> bytes:
        self._skip_to(rows)
        own = self._present.digest() + self._lengths.digest() + self._bytes.digest()
        inner = sorted(self._inner.items())
        return own + b"".join(name.encode() + stream.digest(stream._rows) for name, stream in inner)

    def add(self, values: pa.Array[Any], places: Sequence[int]) -> None:
        values = _plain(values)
        if not len(values):
            return
        self._skip_to(places[0])
        self._rows = places[-1] + 1
        if len(values) < self._rows - places[0]:
            marks = bytearray(self._rows - places[0])
            for place in places:
                marks[place - places[0]] = 1
            self._present.update(marks)
        elif values.null_count:
            self._present.update(_fixed(values.is_valid().cast(pa.uint8())))
            values = values.drop_null()
        else:
            self._present.update(b"\1" * len(values))
        if len(values):
            if self._add_values is None:
                self._add_values = self._adder(values.type)
            self._add_values(values)

    def _skip_to(self, row: int) -> None:
        """The rows up to ``row`` have no value."""
        while self._rows < row:
            count = min(row - self._rows, 1 << 16)
            self._present.update(bytes(count))
            self._rows += count

    def _adder(self, kind: pa.DataType) -> Callable[[Any], None]:
        """How values of this type, none of them null, are added."""
        if pa.types.is_struct(kind):
            return self._add_structs
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return self._add_lists
        if pa.types.is_string(kind) or pa.types.is_binary(kind):
            return self._add_strings
        if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
            return self._add_large_strings
        if pa.types.is_boolean(kind):
            return lambda values: self._bytes.update(_fixed(values.cast(pa.uint8())))
        return lambda values: self._bytes.update(_fixed(values))

    def _add_structs(self, values: Any) -> None:
        for item, column in zip(values.type, values.flatten(), strict=True):
            self._add_inner(item.name, column)

    def _add_lists(self, values: Any) -> None:
        self._lengths.update(_fixed(pc.list_value_length(values).cast(pa.int64())))
        self._add_inner("", values.flatten())

    def _add_strings(self, values: Any) -> None:
        self._lengths.update(_fixed(pc.binary_length(values)))
        self._bytes.update(_content(values, "i"))

    def _add_large_strings(self, values: Any) -> None:
        self._lengths.update(_fixed(pc.binary_length(values).cast(pa.int32())))
        self._bytes.update(_content(values, "q"))

    def _add_inner(self, name: str, values: pa.Array[Any]) -> None:
        inner = self._inner.setdefault(name, _Stream())
        inner.add(values, range(inner._rows, inner._rows + len(values)))


def _plain(values: pa.Array[Any]) -> pa.Array[Any]:
    """The same values without what is only a way to hold them: dictionaries, extensions, maps."""
    if isinstance(values, pa.ExtensionArray):
        return _plain(values.storage)
    if isinstance(values, pa.DictionaryArray):
        return _plain(values.dictionary_decode())
    if isinstance(values, pa.MapArray):
        kind = values.type
        return values.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    return values


def _fixed(values: Any) -> memoryview:
    """The bytes of values of a fixed width."""
    width = values.type.bit_width // 8
    return memoryview(values.buffers()[1])[values.offset * width : (values.offset + len(values)) * width]


def _content(values: Any, offset_format: str) -> memoryview:
    """The bytes of all strings, one after the other."""
    _, offsets, content = values.buffers()
    if content is None:
        return memoryview(b"")
    # A file may say that its buffers are longer than they need to be, by any number of bytes.
    used = (values.offset + len(values) + 1) * (8 if offset_format == "q" else 4)
    bounds = memoryview(offsets)[:used].cast(offset_format)  # type: ignore[call-overload]
    return memoryview(content)[bounds[values.offset] : bounds[values.offset + len(values)]]
