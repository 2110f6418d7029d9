"""The digest of a job's rows: the same wherever batches are cut, and whatever the order of keys was.

Each column has streams of its own, one for each kind of value: where its values are, how long they are, and their
bytes, read from Arrow's buffers. Nulls are left out, for a column that no row has named yet is one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

#: ``(request or own, column, kind of value)``
Key = tuple[str, str, str]


class RowsDigest:
    """Collects the columns of batch after batch."""

    def __init__(self) -> None:
        self._streams: dict[Key, _Stream] = {}

    def add(self, key: Key, values: pa.Array[Any], places: pa.Array[Any]) -> None:
        """``places`` holds the row_index of each value, int64."""
        stream = self._streams.get(key)
        if stream is None:
            stream = self._streams[key] = _Stream()
        stream.add(values, places)

    def hexdigest(self, identity: bytes, rows: int) -> str:
        """SHA-256, hex, of the job's identity, the number of rows and all values so far."""
        whole = hashlib.sha256(hashlib.sha256(identity).digest())
        whole.update(rows.to_bytes(8, "big"))
        for key, stream in sorted(self._streams.items()):
            if stream.used:
                whole.update(hashlib.sha256("\0".join(key).encode()).digest() + stream.digest())
        return whole.hexdigest()


class _Stream:
    """Values of one kind. Those of nested types have a stream for each level."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._lengths = hashlib.sha256()
        self._bytes = hashlib.sha256()
        self._inner: dict[str, _Stream] = {}
        self._seen = 0
        self.used = False

    def digest(self) -> bytes:
        own = self._hash.digest() + self._lengths.digest() + self._bytes.digest()
        return own + b"".join(name.encode() + inner.digest() for name, inner in sorted(self._inner.items()))

    def add(self, values: pa.Array[Any], places: pa.Array[Any]) -> None:
        values = _plain(values)
        if values.null_count:
            places = places.filter(values.is_valid())
            values = values.drop_null()
        if len(values):
            self.used = True
            self._hash.update(_fixed(places))
            self._add_values(values)

    def _add_values(self, values: Any) -> None:
        """``values`` holds no null."""
        kind = values.type
        if pa.types.is_struct(kind):
            for item, column in zip(kind, values.flatten(), strict=True):
                self._add_inner(item.name, column)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            self._lengths.update(_fixed(pc.list_value_length(values).cast(pa.int64())))
            self._add_inner("", values.flatten())
        elif _is_bytes(kind):
            self._lengths.update(_fixed(pc.binary_length(values).cast(pa.int64())))
            self._bytes.update(_content(values))
        else:
            self._bytes.update(_fixed(values.cast(pa.uint8()) if pa.types.is_boolean(kind) else values))

    def _add_inner(self, name: str, values: pa.Array[Any]) -> None:
        inner = self._inner.setdefault(name, _Stream())
        first, inner._seen = inner._seen, inner._seen + len(values)
        inner.add(values, pa.array(range(first, inner._seen), pa.int64()))


def _is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


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


def _fixed(values: pa.Array[Any]) -> memoryview:
    """The bytes of values of a fixed width."""
    width = values.type.bit_width // 8
    buffer = values.buffers()[1]
    return memoryview(buffer)[values.offset * width : (values.offset + len(values)) * width]  # type: ignore[arg-type]


def _content(values: pa.Array[Any]) -> memoryview:
    """The bytes of all strings, one after the other."""
    _, offsets, content = values.buffers()
    if content is None:
        return memoryview(b"")
    wide = pa.types.is_large_string(values.type) or pa.types.is_large_binary(values.type)
    bounds = memoryview(offsets).cast("q" if wide else "i")  # type: ignore[arg-type]
    return memoryview(content)[bounds[values.offset] : bounds[values.offset + len(values)]]
