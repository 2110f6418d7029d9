"""From a source to results: whatever its format, flags, blocks and batches, what a few lines of plain Python say."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.prompts import Prompt, read_batch, write_batch
from jobs.results import ResultRow, read_part, write_part
from jobs.spec import SamplingParams
from producer.batches import BatchBuilder
from producer.check import Checking
from producer.rows import RowOptions
from producer.sources import Source, arrow, base, lines, open_source, rows_source, table_source
from producer.template import Template

SAMPLING = SamplingParams(n=2, max_tokens=7)
CUSTOM_ID = "custom_id"

_TEXT = st.text(st.sampled_from('aé"\\, \n{}💥'), max_size=6)
_PROMPT = st.just("p") | _TEXT | st.none()
_ID = st.integers(0, 10**6) | st.uuids().map(str) | st.sampled_from(["a", "", None])
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


@dataclass
class Given:
    """A row of a source: where it is and what it holds; None of a line that is none."""

    file: str
    line: int
    values: dict[str, Any] | None


@dataclass
class Flags:
    options: RowOptions
    skip_invalid: bool
    sizes: tuple[int, int]


@dataclass
class Run:
    """What came out of the real pipeline."""

    checking: Checking
    builder: BatchBuilder
    digest: str
    prompts: list[Prompt] = field(default_factory=list)
    parts: list[pa.Table] = field(default_factory=list)


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """So that rows of a test are in many blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK", 40)
        patch.setattr(base, "_BLOCK_ROWS", 3)
        patch.setattr(arrow, "_SLICE", 3)
        yield


def run(source: Source, flags: Flags, size: int) -> Run:
    checking = Checking(source, flags.options, batch_size=size, limit_problems=1000, skip_invalid=flags.skip_invalid)
    builder = BatchBuilder(size, source.types)
    batches = list(builder.batches(checking.blocks()))
    found = Run(checking, builder, builder.digest(b"identity"))
    columns = builder.columns()
    for batch in batches:
        read = read_batch(write_batch(batch.table), SAMPLING)
        found.prompts += read.prompts
        rows = [ResultRow(prompt.row_index, 0, prompt.custom_id, "ok") for prompt in reversed(read.prompts)]
        part = read_part(write_part(rows, read.columns, columns, batch.first_row))
        found.parts.append(part.replace_schema_metadata(None))
    return found


def as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def expected(values: dict[str, Any] | None, options: RowOptions, id_column: str | None) -> dict[str, Any]:
    """The request that a row asks for; ``error`` instead where it cannot run."""
    bad: dict[str, Any] = {"id": None, "error": True, "n": 1}
    if values is None:
        return bad
    name = None
    if id_column:
        name = values.get(id_column)
        if name is None or name == "":
            return bad
        name = str(name)
    bad["id"] = name
    params = {}
    for key in ("n", "max_tokens"):
        if values.get(key) not in (None, ""):
            if int(values[key]) < 1:
                return bad
            params[key] = int(values[key])
    if options.template is not None:
        pieces = [values.get(key) for key in options.template.fields]
        if None in pieces:
            return bad
        prompt = "About " + " ".join(map(as_text, pieces))
    else:
        prompt = values.get(options.prompt_column or "prompt")
    messages = None
    if not prompt and not options.prompt_column and values.get("messages"):
        prompt, messages = None, values["messages"]
    elif not isinstance(prompt, str) or not prompt.strip():
        return bad
    elif options.chat or options.system:
        prompt, messages = None, [{"role": "user", "content": prompt}]
    if options.system and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": options.system}, *messages]
    defaults = {"n": SAMPLING.n, "max_tokens": SAMPLING.max_tokens}
    return {"id": name, "error": False, "prompt": prompt, "messages": messages, **defaults, **params}


def settled(values: list[Any]) -> list[Any]:
    """The values of a JSON column as they are in the results."""
    kinds = {type(value) if not isinstance(value, int) or abs(value) < 2**63 else dict
             for value in values if value is not None}  # fmt: skip
    if kinds <= {int, float} and len(kinds) == 2:
        return [None if value is None else float(value) for value in values]
    if (len(kinds) == 1 and not kinds & {dict, list}) or not kinds:
        return values
    return [None if value is None else json.loads(json.dumps(value)) for value in values]


def check(rows: list[Given], source: Source, again: Source, flags: Flags, id_column: str | None) -> None:
    options = flags.options
    wanted = [expected(row.values, options, id_column) for row in rows]
    found = run(source, flags, flags.sizes[0])
    report = found.checking.report
    bad = [(row.file, row.line) for row, want in zip(rows, wanted, strict=True) if want["error"]]
    ids = [want["id"] for want in wanted]
    repeated = [(row.file, row.line) for at, row in enumerate(rows) if ids[at] is not None and ids[at] in ids[:at]]
    assert [(item.file, item.line) for item in report.problems] == bad + repeated
    assert (report.rows, report.invalid, report.fatal) == (len(rows), len(bad), len(repeated))
    assert report.ok == (not repeated and (not bad or (flags.skip_invalid and len(bad) < len(rows))))
    if not report.ok:
        return
    totals = found.builder.totals
    good = [want for want in wanted if not want["error"]]
    assert (totals.rows, totals.invalid, totals.batches) == (len(rows), len(bad), -(-len(rows) // flags.sizes[0]))
    assert totals.result_rows == report.result_rows == sum(want["n"] for want in wanted)
    assert totals.max_tokens == report.max_tokens == sum(want["n"] * want["max_tokens"] for want in good)
    assert [prompt.row_index for prompt in found.prompts] == list(range(len(rows)))
    for prompt, want in zip(found.prompts, wanted, strict=True):
        assert (prompt.custom_id, prompt.sampling.n) == (want["id"], want["n"])
        assert (prompt.error_code is not None) == want["error"]
        if not want["error"]:
            assert (prompt.prompt, prompt.messages) == (want["prompt"], want["messages"])
            assert prompt.sampling.max_tokens == want["max_tokens"]
    check_columns(rows, found, source.columns_typed, options, id_column)
    assert run(again, flags, flags.sizes[1]).digest == found.digest


def check_columns(rows: list[Given], found: Run, typed: bool, options: RowOptions, id_column: str | None) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row.values or {}))
    kept = [name for name in names
            if (options.keep_columns is None or name in options.keep_columns) and name not in options.drop_columns
            and not name == id_column == CUSTOM_ID]  # fmt: skip
    columns = found.builder.columns()
    assert sorted(column.source for column in columns) == sorted(kept)
    assert len({part.schema for part in found.parts}) == 1
    table = pa.concat_tables(found.parts)
    for column in columns:
        values = [(row.values or {}).get(column.source) for row in rows]
        results = table.column(column.name).to_pylist()
        if column.encoding == "json":
            results = [None if text is None else json.loads(text) for text in results]
        want = values if typed else settled(values)
        assert results == want
        assert list(map(type, results)) == list(map(type, want))


@st.composite
def flags(draw: st.DrawFn, *, chats: bool = True) -> Flags:
    prompts = draw(st.sampled_from([{}, {"prompt_column": "prompt"}, {"template": Template.parse("About {a} {b}")}]))
    columns = draw(st.sampled_from([{}, {"keep_columns": ("a",)}, {"drop_columns": ("prompt", "b")}]))
    chat = draw(st.sampled_from([{}, {"chat": True}, {"system": "S"}])) if chats else {}
    options: dict[str, Any] = {**prompts, **columns, **chat}
    return Flags(RowOptions(**options, sampling=SAMPLING), draw(st.booleans()), (draw(_SIZES), draw(_SIZES)))


@st.composite
def json_rows(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str | None]:
    """Rows, the first with all that flags may name; and their id column."""
    kinds = {name: draw(_SAME_KIND) for name in "ab"} if draw(st.booleans()) else dict.fromkeys("ab", _JSON)
    ids = draw(st.sampled_from(["id", CUSTOM_ID, None]))
    named = {ids: _ID} if ids else {}
    optional: dict[str, Any] = {"n": st.integers(0, 3) | st.none(), "max_tokens": st.integers(1, 9), "late": _JSON,
                                "messages": _MESSAGES}  # fmt: skip
    row = st.fixed_dictionaries({"prompt": _PROMPT, **kinds, **named}, optional=optional)
    partial = st.fixed_dictionaries({}, optional={"prompt": _PROMPT, **kinds, **named, **optional})
    found = [draw(row), *draw(st.lists(row | partial, max_size=12))]
    return found, ids


def split(draw: st.DrawFn, items: list[Any]) -> list[list[Any]]:
    """One to three files of them, one of which may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=2)))
    return [items[start:end] for start, end in pairwise([0, *cuts, len(items)])]


_QUICK = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


@_QUICK
@given(st.data())
def test_jsonl(data: st.DataObject) -> None:
    rows, id_column = data.draw(json_rows())
    broken = st.sampled_from(["", "  ", '{"prompt": ', "[1]", '{"a":1,"a":2}'])
    texts: list[str | dict[str, Any]] = []
    for row in rows:
        texts += [row, *data.draw(st.lists(broken, max_size=1))]
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
    values = {"n": st.sampled_from(["", "1", "3", "0"]), "id": st.uuids().map(str) | st.sampled_from(["a", ""])}
    row = st.fixed_dictionaries({name: values.get(name, st.just("p") | _TEXT) for name in names})
    rows: list[dict[str, Any] | None] = data.draw(st.lists(row | st.none(), min_size=1, max_size=12))
    given_rows = []
    with TemporaryDirectory() as folder:
        for number, part in enumerate(split(data.draw, rows)):
            path, text = f"{folder}/{number}.csv", io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            for item in part:
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
     st.fixed_dictionaries({"x": st.integers(0, 3) | st.none(), "y": st.lists(st.booleans(), max_size=2) | st.none()})),
    (pa.bool_(), st.booleans()),
    (pa.null(), st.none()),
]  # fmt: skip


@_QUICK
@given(st.data())
def test_parquet_arrow_and_tables(data: st.DataObject) -> None:
    (a, a_values), (b, b_values) = data.draw(st.sampled_from(_TYPES)), data.draw(st.sampled_from(_TYPES))
    ids = data.draw(st.sampled_from(["id", CUSTOM_ID]))
    types = {"prompt": pa.string(), ids: pa.int64(), "a": a, "b": b, "n": pa.int16()}
    numbers = st.integers(0, 10**6) | st.just(1) | st.none()
    values = {"prompt": _PROMPT, ids: numbers, "a": a_values | st.none(), "b": b_values | st.none(),
              "n": st.integers(0, 2) | st.none()}  # fmt: skip
    rows = data.draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=12))
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
