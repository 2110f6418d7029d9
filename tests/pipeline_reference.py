"""What a few lines of plain Python say that rows become: the reference of the way from a source to results."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import orjson
import pyarrow as pa

from jobs.prompts import Prompt, read_batch, write_batch
from jobs.results import ResultRow, read_part, write_part
from jobs.spec import SamplingParams
from producer.batches import BatchBuilder
from producer.check import Checking
from producer.rows import RowOptions
from producer.sources import Source

SAMPLING = SamplingParams(n=2, max_tokens=7)
CUSTOM_ID = "custom_id"


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
