"""Parquet, with the types of the dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

#: Rows and bytes of a row group at most: large enough for readers to work in bulk, small enough to hold one in memory.
_GROUP_ROWS, _GROUP_BYTES = 65_536, 64 << 20


def write_parquet(batches: Iterable[pa.RecordBatch], schema: pa.Schema, out: BinaryIO) -> int:
    """The number of rows written."""
    rows = held = size = 0
    group: list[pa.RecordBatch] = []
    with pq.ParquetWriter(out, schema, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            group.append(batch)
            rows, held, size = rows + batch.num_rows, held + batch.num_rows, size + batch.nbytes
            if held >= _GROUP_ROWS or size >= _GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group, schema))
                group, held, size = [], 0, 0
        if group:
            writer.write_table(pa.Table.from_batches(group, schema))
    return rows
