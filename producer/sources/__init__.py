"""Where rows come from: one file per input format, each streamed with the numbers of its lines.

``open_source`` is for what the command line names, ``rows_source`` and ``table_source`` for rows in Python.
"""

from typing import Any

from producer.sources.base import ArrowBlock, Block, Found, Item, Source, SourceRow
from producer.sources.files import open_source
from producer.sources.rows import rows_source


def table_source(table: Any, name: str = "table") -> Source:
    """See ``producer.sources.arrow.table_source``, which is imported when it is needed."""
    from producer.sources import arrow

    return arrow.table_source(table, name)


__all__ = ["ArrowBlock", "Block", "Found", "Item", "Source", "SourceRow", "open_source", "rows_source", "table_source"]
