"""The source's own columns: how their values are written as text, and which types they get.

A JSON column has no type before its last row was seen, so it is staged as raw JSON text, which is cast to the
type settled here when a part is written: bool, int64, float64 and string stay what they are, integers among
floats widen, and everything else stays JSON text.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import orjson
import pyarrow as pa

from jobs.errors import InputError
from jobs.results import RESULT_NAMES, encode_arrow_type, result_name
from jobs.spec import Column

#: More columns than this are keys that hold data, and would make every file of the results huge.
MAX_COLUMNS = 2_000

#: The Hive partition of the results: readers that see both would refuse or rename one.
_PARTITION = "job_id"

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1

Encoding = Literal["typed", "int64", "float64", "bool", "string", "json"]


def as_json(value: Any) -> str:
    """``value`` as JSON text. Dates, decimals and the like, which only typed sources have, become strings."""
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:
        # An integer beyond 64 bits.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def as_text(value: Any) -> str:
    """``value`` as it stands in a prompt: a string as it is, anything else like JSON."""
    if isinstance(value, str):
        return value
    text = as_json(value)
    return orjson.loads(text) if text.startswith('"') else text


def unknown_column(name: str, columns: Iterable[str]) -> str:
    """Says that there is no such column, which ones there are, and which was perhaps meant."""
    known = list(columns)
    close = difflib.get_close_matches(name, known, n=1) or [other for other in known if other.lower() == name.lower()]
    hint = f", did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"there is no column {name!r}{hint} (columns: {shown or 'none'})"


class ColumnTypes:
    """Collects the kinds of value of each column, batch by batch, and settles the types at the end.

    ``types`` are the source's own, for sources whose columns have them.
    """

    def __init__(self, types: Mapping[str, pa.DataType] | None = None) -> None:
        self._types = types
        self._kinds: dict[str, set[str]] = {}

    @property
    def names(self) -> list[str]:
        """The columns seen so far, in order of appearance."""
        return list(self._kinds)

    def see(self, names: Iterable[str]) -> None:
        """Notes that these columns exist. Raises InputError where there are too many."""
        for name in names:
            if name not in self._kinds:
                self._kinds[name] = set()
        if len(self._kinds) > MAX_COLUMNS:
            reason = f"the rows have more than {MAX_COLUMNS} different columns"
            raise InputError(f"{reason}: name those to keep with --keep-columns")

    def stage(self, name: str, values: list[Any]) -> pa.Array[Any]:
        """One batch of a column as it is staged, its kinds noted."""
        if self._types is not None:
            return pa.array(values, self._types[name])
        kinds = self._kinds[name]
        kinds.update(map(_kind, values))
        return pa.array([None if value is None else as_json(value) for value in values], pa.string())

    def settle(self) -> tuple[Column, ...]:
        """The columns with their types and their names in the results."""
        clashing = RESULT_NAMES | {_PARTITION}
        taken = set(clashing) | {name for name in self._kinds if name not in clashing}
        columns = []
        for name, kinds in self._kinds.items():
            shown = result_name(name, taken) if name in clashing else name
            taken.add(shown)
            columns.append(self._column(name, shown, kinds))
        return tuple(columns)

    def _column(self, source: str, name: str, kinds: set[str]) -> Column:
        if self._types is not None:
            return Column(source=source, name=name, encoding="typed", arrow=encode_arrow_type(self._types[source]))
        return Column(source=source, name=name, encoding=settle_type(kinds))


def settle_type(kinds: set[str]) -> Encoding:
    """The type of a column whose values are of these kinds; a column of nulls becomes strings."""
    present = kinds - {"null"}
    if not present:
        return "string"
    if present == {"int64", "float64"}:
        return "float64"
    if len(present) > 1:
        return "json"
    only: Encoding = present.pop()  # type: ignore[assignment]
    return only


_KINDS = {type(None): "null", str: "string", bool: "bool", float: "float64"}


def _kind(value: Any) -> str:
    kind = type(value)
    if kind is int:
        return "int64" if _INT64_MIN <= value <= _INT64_MAX else "json"
    return _KINDS.get(kind, "json")
