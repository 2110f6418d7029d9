"""Where rows come from: one file per input format, each streamed with the numbers of its lines.

``open_source`` is for what the command line names, ``rows_source`` and ``table_source`` for rows in Python.
"""

from producer.sources.base import Item, Source, SourceRow
from producer.sources.files import open_source
from producer.sources.rows import rows_source, table_source

__all__ = ["Item", "Source", "SourceRow", "open_source", "rows_source", "table_source"]
