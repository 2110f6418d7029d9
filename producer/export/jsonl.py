"""JSON Lines: an object for each row."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from typing import Any, BinaryIO

import orjson
import pyarrow as pa

from jobs.job_file import JobFile
from producer.export.plain import plain


def write_jsonl(record: JobFile, batches: Iterable[pa.RecordBatch], out: BinaryIO) -> int:
    """The number of rows written."""
    rows = 0
    for row in json_rows(record, batches):
        out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        rows += 1
    return rows


def json_rows(record: JobFile, batches: Iterable[pa.RecordBatch]) -> Iterator[dict[str, Any]]:
    """The rows for orjson, which writes NaN and infinities as null.

    Columns that hold JSON text because their values had no common type become those values again.
    """
    texts = {column.name for column in record.columns if column.encoding == "json"}
    for batch in batches:
        names = batch.schema.names
        for values in zip(*_values(batch, texts), strict=True):
            yield dict(zip(names, values, strict=True))


def _values(batch: pa.RecordBatch, texts: Collection[str]) -> Iterator[list[Any]]:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        values = plain(column).to_pylist()
        yield [None if value is None else _value(value) for value in values] if name in texts else values


def _value(text: str) -> orjson.Fragment:
    """JSON text, put into the line as it is; written anew if it has line breaks between its values."""
    return orjson.Fragment(json.dumps(json.loads(text)) if "\n" in text or "\r" in text else text)
