"""The source's own columns: how they are staged, which types they get, how their values are written as text.

A JSON column has no type before its last row was seen. A batch of it whose values are all of one kind is staged as
that kind, any other as raw JSON text, and the worker casts both to the type settled here when it writes a part:
bool, int64, float64, string and lists of one of them stay what they are, integers among floats widen, everything else
is JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, NamedTuple, cast

import orjson
import pyarrow as pa

from jobs.errors import InputError
from jobs.job_file import Column, Encoding
from jobs.prompts import SOURCE_PREFIX
from jobs.results import JSON_TEXT, RESULT_NAMES, encode_arrow_type, result_name
from producer.near import did_you_mean

#: More columns than this are keys that hold data, and would make every file of the results huge.
MAX_COLUMNS = 2_000

#: Levels of a JSON value: what orjson can write (254) less what is put around a row's values.
MAX_DEPTH = 200
TOO_DEEP = f"the JSON is nested more than {MAX_DEPTH} levels deep"

#: The Hive partition of the results: readers that see both would refuse or rename one.
_PARTITION = "job_id"

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


class ArrowRow(NamedTuple):
    """A row's own columns where they are in Arrow already: never turned into Python and back."""

    batch: pa.RecordBatch
    place: int


#: A row's own columns.
Own = Mapping[str, Any] | ArrowRow


@dataclass(frozen=True, slots=True)
class Staged:
    """A batch of one column. ``pieces`` are its values by kind, each with the places of its values in the batch.

    Places of None are all of them, in order.
    """

    name: str
    array: pa.Array[Any]
    pieces: Sequence[tuple[str, pa.Array[Any], Sequence[int] | None]]
    is_json: bool = False

    @property
    def field(self) -> pa.Field[Any]:
        return pa.field(SOURCE_PREFIX + self.name, self.array.type, metadata=JSON_TEXT if self.is_json else None)


class OwnColumns:
    """Stages the own columns batch by batch, and settles their types at the end.

    ``types`` are the source's own, for sources whose columns have them.
    """

    def __init__(self, types: Mapping[str, pa.DataType] | None = None) -> None:
        self._types = types
        self._kinds: dict[str, set[str]] = {}

    def stage(self, rows: Sequence[Own]) -> list[Staged]:
        """The columns of one batch, those known by now, in order of appearance. Raises InputError for too many."""
        if isinstance(rows[0], ArrowRow):
            return self._stage_arrow(rows)  # type: ignore[arg-type]
        dicts: Sequence[Mapping[str, Any]] = rows  # type: ignore[assignment]
        if not self._kinds.keys() >= set().union(*dicts):
            self._see(dict.fromkeys(name for row in dicts for name in row))
        return [self._stage_values(name, [row.get(name) for row in dicts]) for name in self._kinds]

    def _stage_values(self, name: str, values: list[Any]) -> Staged:
        if self._types is None:
            return stage_json(name, values, self._kinds[name])
        array = pa.array(values, self._types[name])
        return Staged(name, array, [(str(array.type), array, None)])

    def _stage_arrow(self, rows: Sequence[ArrowRow]) -> list[Staged]:
        table = pa.Table.from_batches(list(_runs(rows))).combine_chunks()
        self._see(table.column_names)
        staged = []
        for name, column in zip(table.column_names, table.columns, strict=True):
            array: Any = column.chunk(0)
            staged.append(Staged(name, array, [(str(array.type), array, None)]))
        return staged

    def _see(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self._kinds:
                self._kinds[name] = set()
        if len(self._kinds) > MAX_COLUMNS:
            reason = f"the rows have more than {MAX_COLUMNS} different columns"
            raise InputError(f"{reason}: name those to keep with --keep-columns")

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
        encoding = settle_type(kinds)
        arrow = encode_arrow_type(pa.list_(_ARROW[_element_type(kinds)])) if encoding == "list" else None
        return Column(source=source, name=name, encoding=encoding, arrow=arrow)


def _runs(rows: Sequence[ArrowRow]) -> Iterator[pa.RecordBatch]:
    """The batches that hold ``rows``, cut to them: rows of one batch follow each other."""
    for _, group in groupby(rows, key=lambda row: id(row.batch)):
        run = list(group)
        yield run[0].batch.slice(run[0].place, len(run))


_NONE = type(None)
_LIST_OF = "list of "
_PLAIN: dict[type, tuple[str, pa.DataType]] = {
    str: ("string", pa.string()),
    int: ("int64", pa.int64()),
    float: ("float64", pa.float64()),
    bool: ("bool", pa.bool_()),
}


_ARROW = dict(_PLAIN.values())


def stage_json(name: str, values: list[Any], kinds: set[str]) -> Staged:
    """One batch of a JSON column, its kinds added to ``kinds``."""
    present = set(map(type, values))
    present.discard(_NONE)
    if not present:
        return Staged(name, pa.nulls(len(values), pa.string()), [])
    if len(present) == 1 and (plain := _PLAIN.get(present.pop())) is not None:
        kind, arrow = plain
        try:
            array = pa.array(values, arrow)
        except (OverflowError, pa.ArrowInvalid):  # an integer beyond 64 bits
            return _stage_text(name, values, kinds)
        kinds.add(kind)
        return Staged(name, array, [(kind, array, None)])
    return _stage_text(name, values, kinds)


def _stage_text(name: str, values: list[Any], kinds: set[str]) -> Staged:
    """A batch whose values are nested or of several kinds, as JSON text."""
    by_kind: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        if value is not None:
            by_kind.setdefault(_kind(value), []).append(place)
    kinds.update(kind for kind in by_kind if kind != "json")
    for place in by_kind.get("json", ()):
        kinds.update(_nested_kinds(values[place]))
    texts = pa.array([None if value is None else as_json(value) for value in values], pa.string())
    pieces = [
        (kind, texts.take(places) if kind == "json" else pa.array([values[place] for place in places], _ARROW[kind]),
         places)
        for kind, places in by_kind.items()
    ]  # fmt: skip
    return Staged(name, texts, pieces, is_json=True)


def _kind(value: Any) -> str:
    kind = type(value)
    if kind is int and not _INT64_MIN <= value <= _INT64_MAX:
        return "json"
    return _PLAIN[kind][0] if kind in _PLAIN else "json"


def _nested_kinds(value: Any) -> set[str]:
    """The kinds of a value that is no scalar: ``json``, or ``list`` and ``list of`` what its elements are."""
    if type(value) is not list:
        return {"json"}
    elements = {_kind(item) for item in value if item is not None}
    return {"json"} if "json" in elements else {"list", *(_LIST_OF + element for element in elements)}


def _element_type(kinds: set[str]) -> Encoding:
    """Of the lists among these kinds."""
    return settle_type({kind.removeprefix(_LIST_OF) for kind in kinds if kind.startswith(_LIST_OF)})


def settle_type(kinds: set[str]) -> Encoding:
    """The type of a column whose values are of these kinds; a column of nulls becomes strings."""
    if not kinds:
        return "string"
    if "list" in kinds:
        only_lists = all(kind == "list" or kind.startswith(_LIST_OF) for kind in kinds)
        return "list" if only_lists and _element_type(kinds) != "json" else "json"
    if kinds == {"int64", "float64"}:
        return "float64"
    if len(kinds) > 1:
        return "json"
    return cast(Encoding, next(iter(kinds)))


def as_json(value: Any) -> str:
    """``value`` as JSON text. Dates, decimals and the like, which only typed sources have, become strings."""
    try:
        return orjson.dumps(value, default=str).decode()
    except orjson.JSONEncodeError:
        # An integer beyond 64 bits.
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def is_too_deep(value: Any) -> bool:
    """Whether a JSON value has more than MAX_DEPTH levels."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        lists = [item.values() if type(item) is dict else item for item in level if type(item) in (dict, list)]
        level = list(chain.from_iterable(lists))
        if not lists:
            return False
    return True


def as_text(value: Any) -> str:
    """``value`` as it stands in a prompt: a string as it is, anything else like JSON."""
    if isinstance(value, str):
        return value
    text = as_json(value)
    return orjson.loads(text) if text.startswith('"') else text


def unknown_column(name: str, columns: Iterable[str]) -> str:
    """Says that there is no such column, which ones there are, and which was perhaps meant."""
    known = list(columns)
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"there is no column {name!r}{did_you_mean(name, known)} (columns: {shown or 'none'})"
