"""Parquet in memory, as every file of a job is read and written: with page checksums, so that a flipped bit is found.

Arrow reads from its own buffers here and on the calling thread. Reading from Python file objects, Arrow's threads would
want the interpreter at moments of their own, the moment of its exit among them, which ends the process (SIGABRT).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq


def open_parquet(content: bytes) -> pq.ParquetFile:
    """A file for reading. Raises pa.ArrowException or OSError where the bytes are no Parquet file."""
    return pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True, pre_buffer=False)


def read_parquet(content: bytes) -> pa.Table:
    """All rows, every page verified. Raises as ``open_parquet``."""
    return open_parquet(content).read(use_threads=False)


class ParquetBuffer:
    """Writes tables of one schema into memory, each as a row group."""

    def __init__(self, schema: pa.Schema, compression_level: int | None = None) -> None:
        self._sink = pa.BufferOutputStream()
        self._writer = pq.ParquetWriter(
            self._sink, schema, compression="zstd", compression_level=compression_level, write_page_checksum=True
        )

    def write(self, table: pa.Table) -> None:
        self._writer.write_table(table)

    def finish(self) -> bytes:
        """The bytes of the whole file."""
        self._writer.close()
        return self._sink.getvalue().to_pybytes()


def to_parquet(table: pa.Table, compression_level: int | None = None) -> bytes:
    """The bytes of ``table`` as one row group; the schema's metadata go into the footer."""
    buffer = ParquetBuffer(table.schema, compression_level)
    buffer.write(table)
    return buffer.finish()
