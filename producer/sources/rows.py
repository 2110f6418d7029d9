"""Rows that are already in Python: dicts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from jobs.errors import Problem
from producer.sources.base import Item, Source, SourceRow, grouped
from producer.sources.jsonl import read_object


def rows_source(rows: Iterable[Mapping[str, Any]], name: str = "rows") -> Source:
    """A source of dicts of JSON values; the first is line 1. Raises SourceError where there are none."""
    source = Source(name, lambda: grouped(_dict_items(rows, name)), rereadable=isinstance(rows, Sequence))
    return source.look_ahead()


def _dict_items(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Item]:
    for number, row in enumerate(rows, start=1):
        yield _dict_row(row, name, number)


def _dict_row(row: Any, name: str, number: int) -> Item:
    if not isinstance(row, Mapping):
        return Problem(name, number, f"is {type(row).__name__}, not a dict")
    if any(isinstance(value, float) and value - value != 0 for value in row.values()):
        return Problem(name, number, "holds NaN or Infinity: use None or a number")
    try:
        # Through JSON and back: whatever was in it, plain values come out.
        return SourceRow(name, number, orjson.loads(orjson.dumps(dict(row))))
    except orjson.JSONEncodeError as error:
        if "64-bit" not in str(error):
            return Problem(name, number, f"cannot be written as JSON: {error}")
    try:
        # An integer that orjson cannot write; its equals in files are kept too.
        line = json.dumps(dict(row), default=str)
    except (ValueError, RecursionError) as error:
        return Problem(name, number, f"cannot be written as JSON: {error}")
    return read_object(line.encode(), name, number) or Problem(name, number, "is empty")
