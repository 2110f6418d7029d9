"""Parquet in memory, as every file of a job is read and written: with page checksums, so that a flipped bit is found.

Arrow reads from its own buffers here and on the calling thread. Reading from Python file objects, Arrow's threads would
want the interpreter at moments of their own, the moment of its exit among them, which ends the process (SIGABRT).
"""

from __future__ import annotations

import hashlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

#: In the footer of a sealed file: the hash of all its bytes, computed with zeros in the place of the hash itself. Page
#: checksums cover neither the footer nor the headers of pages, where a flipped bit can turn a column into nulls.
_SEAL = b"promptmill.seal"
_SEAL_LENGTH = 32
#: Thrift's compact protocol between a key and its value: the next field, a string, of _SEAL_LENGTH bytes.
_SEAL_TAG = _SEAL + bytes([0x18, _SEAL_LENGTH])


class _NoPandas:
    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name, name=name)


def keep_pandas_out() -> None:
    """Have Arrow do without pandas in this process, for good: where it is installed, Arrow would import it with its
    first array, which takes a second or more. For programs of our own, which have no data frames."""
    if "pandas" not in sys.modules:
        sys.meta_path.insert(0, _NoPandas)
        try:
            pa.array([0])
        finally:
            sys.meta_path.remove(_NoPandas)


def open_parquet(content: bytes) -> pq.ParquetFile:
    """A file for reading. Raises pa.ArrowException or OSError where the bytes are no Parquet file."""
    return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, pre_buffer=False)


def read_parquet(content: bytes) -> pa.Table:
    """All rows of a sealed file, every bit verified. Raises as ``open_parquet``."""
    if _seal(content) != content:
        raise pa.ArrowInvalid("the seal is broken: the file was cut or changed after it was written")
    return open_parquet(content).read(use_threads=False)


def _seal(content: bytes) -> bytes:
    """``content`` with the seal that it must have. Raises pa.ArrowInvalid where it has no place for one."""
    place = content.rfind(_SEAL_TAG)
    if place < 0:
        raise pa.ArrowInvalid("the file has no seal: it is cut, or not one of ours")
    before, after = content[: place + len(_SEAL_TAG)], content[place + len(_SEAL_TAG) + _SEAL_LENGTH :]
    seal = hashlib.blake2b(before + b"0" * _SEAL_LENGTH + after, digest_size=_SEAL_LENGTH // 2).hexdigest()
    return before + seal.encode() + after


class ParquetBuffer:
    """Writes tables of one schema into memory, each as a row group.

    ``plain``: quickly, for what is read whole and once: no dictionaries, no statistics, quick compression.
    """

    def __init__(self, schema: pa.Schema, *, plain: bool = False) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink,
            schema,
            compression="lz4" if plain else "zstd",
            use_dictionary=not plain,
            write_statistics=not plain,
            write_page_checksum=True,
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def finish(self) -> bytes:
        """The bytes of the whole file."""
        self._writer.close()
        return self._sink.getvalue().to_pybytes()


def to_parquet(table: pa.Table, *, plain: bool = False) -> bytes:
    """The sealed bytes of ``table`` as one row group; the schema's metadata go into the footer.

    ``plain`` is as in ParquetBuffer.
    """
    metadata = {**(table.schema.metadata or {}), _SEAL: b"0" * _SEAL_LENGTH}
    table = table.replace_schema_metadata(metadata)
    buffer = ParquetBuffer(table.schema, plain=plain)
    buffer.write(table)
    return _seal(buffer.finish())
