"""CSV and TSV: a header, then a record for each row; text is quoted, so a null differs from an empty string."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types
from pyarrow.csv import WriteOptions, write_csv

from producer.export.plain import joined, plain

#: Text that a spreadsheet may take for a formula: it begins with =, +, - or @ (full-width ones too), perhaps behind
#: blanks, or with a tab or a line break (https://owasp.org/www-community/attacks/CSV_Injection).
_FORMULA = (
    r"^[\pZ\x{0}-\x{20}\x{85}\x{200b}-\x{200d}\x{2060}\x{feff}]*[=+\-@\x{ff1d}\x{ff0b}\x{ff0d}\x{ff20}]|^[\t\r\n]"
)
#: ... but for plain numbers, which are what they look like.
_NUMBER = r"^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$"


def write_delimited(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, out: BinaryIO, *, delimiter: str = ",", escape: bool = True
) -> int:
    """The number of rows written. ``escape``: an apostrophe goes before what a spreadsheet would take for a formula."""
    head: list[Any] = _texts(pa.array(schema.names, pa.string()), escape).to_pylist()
    out.write((delimiter.join('"' + name.replace('"', '""') + '"' for name in head) + "\n").encode())
    options = WriteOptions(include_header=False, delimiter=delimiter, quoting_style="needed")
    rows = 0
    for batch in batches:
        columns: list[Any] = [_cells(column, escape) for column in batch.columns]
        if len(columns) == 1:
            # A record that is one null would be a blank line, which readers skip.
            columns = [pc.fill_null(columns[0].cast(pa.string()), "")]
        # In memory first: the errors of a pipe or a full disk are to be Python's own.
        buffer = pa.BufferOutputStream()
        write_csv(pa.RecordBatch.from_arrays(columns, names=[str(i) for i in range(len(columns))]), buffer, options)
        out.write(buffer.getvalue().to_pybytes())
        rows += batch.num_rows
    return rows


def _cells(column: pa.Array[Any], escape: bool) -> pa.Array[Any]:
    column = plain(column)
    if types.is_nested(column.type):
        column = pa.array([None if value is None else orjson.dumps(value).decode() for value in column.to_pylist()])
    if types.is_string(column.type) or types.is_large_string(column.type):
        return _texts(column, escape)
    return column.cast(pa.string()) if types.is_null(column.type) else column


def _texts(column: pa.Array[Any], escape: bool) -> pa.Array[Any]:
    if not escape:
        return column
    formula = pc.and_not(
        pc.match_substring_regex(column, pattern=_FORMULA), pc.match_substring_regex(column, pattern=_NUMBER)
    )
    cells: pa.Array[Any] = pc.if_else(formula, joined("'", column), column)
    return cells
