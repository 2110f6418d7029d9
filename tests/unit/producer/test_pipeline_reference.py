"""From a source to results: whatever its format, flags, blocks and batches, what a few lines of plain Python say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from producer.rows import RowOptions
from producer.sources import arrow, base, lines, open_source, rows_source, table_source
from producer.template import Template
from tests.pipeline_reference import CUSTOM_ID, SAMPLING, Flags, Given, check

_TEXT = st.text(st.sampled_from('aé"\\, \n{}💥'), max_size=6)
_GOOD = _TEXT.map(lambda text: f"p{text}")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**65) | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=3,
)
_SAME_KIND = st.sampled_from([st.integers(-3, 3), st.integers() | st.floats(-3, 3), st.booleans(), _TEXT, st.none()])
_MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.just("m")}),
    min_size=1,
    max_size=2,
)
_SIZES = st.integers(1, 5)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """So that rows of a test are in many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK", 40)
        patch.setattr(base, "_BLOCK_ROWS", 3)
        patch.setattr(arrow, "_SLICE", 3)
        yield


@st.composite
def flags(draw: st.DrawFn) -> Flags:
    templates = [{"template": Template.parse(text)} for text in ("About {a} {b}", "About ")]
    prompts = draw(st.sampled_from([{}, {"prompt_column": "prompt"}, *templates]))
    columns = draw(st.sampled_from([{}, {"keep_columns": ("a",)}, {"drop_columns": ("prompt", "b")}]))
    chat = draw(st.sampled_from([{}, {"chat": True}, {"system": "S"}]))
    options: dict[str, Any] = {**prompts, **columns, **chat}
    skip_invalid = draw(st.sampled_from([True, True, False]))
    return Flags(RowOptions(**options, sampling=SAMPLING), skip_invalid, (draw(_SIZES), draw(_SIZES)))


@dataclass
class Mess:
    """What is wrong with the rows of an example; with those of most of them little is."""

    prompts: st.SearchStrategy[str | None]
    least_n: int
    #: Ids that are none, and how many different ids there are, if some repeat.
    nameless: list[Any]
    names: int | None

    def name(self, draw: st.DrawFn, rows: list[dict[str, Any]], column: str, kinds: list[type]) -> None:
        for number, row in enumerate(rows):
            if column in row:
                kind = draw(st.sampled_from(kinds))
                row[column] = draw(st.sampled_from([kind(number % (self.names or len(rows))), *self.nameless]))


@st.composite
def messes(draw: st.DrawFn) -> Mess:
    prompts = draw(st.sampled_from([_GOOD, _GOOD, _GOOD | _TEXT | st.none()]))
    nameless = draw(st.sampled_from([[], [], [None]]))
    return Mess(prompts, draw(st.sampled_from([1, 1, 0])), nameless, draw(st.sampled_from([None, None, 2])))


@st.composite
def json_rows(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str | None]:
    """Rows, the first with all that flags may name; and their id column."""
    mess = draw(messes())
    kinds = {name: draw(_SAME_KIND) for name in "ab"} if draw(st.booleans()) else dict.fromkeys("ab", _JSON)
    ids = draw(st.sampled_from(["id", CUSTOM_ID, None]))
    fixed = {"prompt": mess.prompts, **kinds, **({ids: st.none()} if ids else {})}
    optional = {"n": st.integers(mess.least_n, 3) | st.none(), "max_tokens": st.integers(1, 9), "late": _JSON,
                "messages": _MESSAGES}  # fmt: skip
    row, partial = st.fixed_dictionaries(fixed, optional=optional), st.fixed_dictionaries({}, optional=fixed)
    found = [draw(row), *draw(st.lists(draw(st.sampled_from([row, row, row | partial])), max_size=12))]
    if ids:
        mess.name(draw, found, ids, [int, str])
    return found, ids


def split(draw: st.DrawFn, items: list[Any]) -> list[list[Any]]:
    """One to three files of them, one of which may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=2)))
    return [items[start:end] for start, end in pairwise([0, *cuts, len(items)])]


_QUICK = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])


@_QUICK
@given(st.data())
def test_jsonl(data: st.DataObject) -> None:
    rows, id_column = data.draw(json_rows())
    broken = data.draw(st.sampled_from([[], ["", "  "], ["", '{"prompt": ', "[1]", '{"a":1,"a":2}']]))
    texts: list[str | dict[str, Any]] = []
    for row in rows:
        texts += [row, *(data.draw(st.lists(st.sampled_from(broken), max_size=1)) if broken else [])]
    given_rows = []
    with TemporaryDirectory() as folder:
        for number, part in enumerate(split(data.draw, texts)):
            path = f"{folder}/{number}.jsonl"
            written = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in part]
            Path(path).write_text("\n".join(written) + data.draw(st.sampled_from(["", "\n"])))
            for line, text in enumerate(part, 1):
                if not isinstance(text, str) or text.strip():
                    given_rows.append(Given(path, line, None if isinstance(text, str) else text))
        glob = f"{folder}/*.jsonl"
        check(given_rows, open_source(glob), open_source(glob), data.draw(flags()), id_column)


@_QUICK
@given(json_rows(), flags(), st.booleans())
def test_dicts(found: tuple[list[dict[str, Any]], str | None], chosen: Flags, once: bool) -> None:
    rows, id_column = found
    given_rows = [Given("rows", line, row) for line, row in enumerate(rows, 1)]
    check(given_rows, rows_source(iter(rows) if once else rows), rows_source(rows), chosen, id_column)


@_QUICK
@given(json_rows(), flags(), st.sampled_from([None, 1]), st.booleans())
def test_json_arrays(
    found: tuple[list[dict[str, Any]], str | None], chosen: Flags, indent: int | None, once: bool
) -> None:
    rows, id_column = found
    text = json.dumps(rows, ensure_ascii=False, indent=indent)
    given_rows, end = [], 0
    for row in rows:
        body = json.dumps(row, ensure_ascii=False, indent=indent)
        start = text.index("{", end)
        end = start + len(body.replace("\n", "\n ") if indent else body)
        given_rows.append(Given("", text.count("\n", 0, start) + 1, row))
    with TemporaryDirectory() as folder:
        path = f"{folder}/a.json"
        Path(path).write_text(text)
        stdin = io.BytesIO(text.encode())
        source = open_source("-", format="json", stdin=stdin) if once else open_source(path)
        for given_row in given_rows:
            given_row.file = "stdin" if once else path
        check(given_rows, source, open_source(path), chosen, id_column)


@_QUICK
@given(st.data())
def test_csv(data: st.DataObject) -> None:
    names = data.draw(st.permutations(["prompt", "id", "a", "b", "n"]))
    mess = data.draw(messes())
    values = {
        "prompt": mess.prompts.map(lambda text: text or ""),
        "n": st.sampled_from(["", "1", "3", "0"][: 4 - mess.least_n]),
    }
    row = st.fixed_dictionaries({name: values.get(name, _TEXT) for name in names})
    good = data.draw(st.lists(row, min_size=1, max_size=12))
    mess.name(data.draw, good, "id", [str])
    rows: list[dict[str, Any] | None] = [*good]
    for place in data.draw(st.sampled_from([[], [0], [1, 3]])):
        rows.insert(place, None)
    given_rows = []
    with TemporaryDirectory() as folder:
        for number, part in enumerate(split(data.draw, rows)):
            path, text = f"{folder}/{number}.csv", io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            for item in part:
                item = item and {name: value or "" for name, value in item.items()}
                given_rows.append(Given(path, text.getvalue().count("\n") + 1, item))
                if item is None:
                    text.write("one field\n")
                else:
                    writer.writerow(item)
            Path(path).write_text(text.getvalue())
        glob = f"{folder}/*.csv"
        check(given_rows, open_source(glob), open_source(glob), data.draw(flags()), "id")


_TYPES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-3, 3)),
    (pa.float64(), st.floats(-3, 3)),
    (pa.large_string(), _TEXT),
    (pa.dictionary(pa.int8(), pa.string()), _TEXT),
    (pa.list_(pa.string()), st.lists(_TEXT | st.none(), max_size=2)),
    (pa.struct([("x", pa.int64()), ("y", pa.list_(pa.bool_()))]),
     # In the order of the type, which is that of the texts: fixed_dictionaries varies it.
     st.builds(lambda x, y: {"x": x, "y": y}, st.integers(0, 3) | st.none(),
               st.lists(st.booleans(), max_size=2) | st.none())),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
]  # fmt: skip


@_QUICK
@given(st.data())
def test_parquet_arrow_and_tables(data: st.DataObject) -> None:
    (a, a_values), (b, b_values) = data.draw(st.sampled_from(_TYPES)), data.draw(st.sampled_from(_TYPES))
    ids = data.draw(st.sampled_from(["id", CUSTOM_ID]))
    types = {"prompt": pa.string(), ids: pa.int64(), "a": a, "b": b, "n": pa.int16()}
    mess = data.draw(messes())
    values = {"prompt": mess.prompts, ids: st.none(), "a": a_values | st.none(), "b": b_values | st.none(),
              "n": st.integers(mess.least_n, 2) | st.none()}  # fmt: skip
    rows = data.draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=12))
    mess.name(data.draw, rows, ids, [int])
    kind, chosen = data.draw(st.sampled_from(["parquet", "arrow", "table", "reader"])), data.draw(flags())
    parts = [pa.Table.from_pylist(part, pa.schema(types)) for part in split(data.draw, rows)]
    if kind in ("table", "reader"):
        table = pa.concat_tables([parts[0], *parts])[parts[0].num_rows :]
        given_rows = [Given("table", line, row) for line, row in enumerate(rows, 1)]
        source = table_source(table if kind == "table" else table.to_reader())
        check(given_rows, source, table_source(table), chosen, ids)
        return
    with TemporaryDirectory() as folder:
        given_rows = []
        for number, part in enumerate(parts):
            path = f"{folder}/{number}.{kind}"
            found = part.to_pylist()
            if number and data.draw(st.booleans()):  # a file that lacks columns of the first
                part = part.select(data.draw(st.sampled_from([["prompt", ids, "a"], ["b"], [ids, "prompt"]])))
                found = [{name: row[name] if name in part.column_names else None for name in row} for row in found]
            if kind == "parquet":
                pq.write_table(part, path, row_group_size=data.draw(_SIZES))
            else:
                with pa.ipc.new_file(path, part.schema) as writer:
                    writer.write_table(part, max_chunksize=data.draw(_SIZES))
            given_rows += [Given(path, line, row) for line, row in enumerate(found, 1)]
        glob = f"{folder}/*.{kind}"
        check(given_rows, open_source(glob), open_source(glob), chosen, ids)
