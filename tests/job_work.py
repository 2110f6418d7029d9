"""Jobs with staged input, and parts as workers would commit them, for the tests of jobs/."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs import layout
from jobs.job_file import Column, JobFile
from jobs.ledger import Ledger, WorkerInfo
from jobs.parts import Part, commit_part
from jobs.prompts import INPUT_FIELDS, SOURCE_PREFIX, write_batch
from jobs.results import ResultRow, write_part
from jobs.spec import JobSpec, SamplingParams
from jobs.store import Store

WHEN = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)

#: The columns of results that docs/results.md promises, in order.
RESULT_COLUMNS = [
    ("row_index", "int64"), ("sample_index", "int32"), ("custom_id", "string"), ("status", "string"),
    ("error_code", "string"), ("error_message", "string"), ("text", "string"), ("finish_reason", "string"),
    ("prompt_tokens", "int32"), ("completion_tokens", "int32"), ("mean_logprob", "float"), ("seed", "int64"),
    ("model", "string"), ("model_revision", "string"), ("attempt", "int32"), ("worker", "string"),
    ("started_at", "timestamp[us, tz=UTC]"), ("finished_at", "timestamp[us, tz=UTC]"),
]  # fmt: skip

#: The one column of the sources below: CSV, so strings that must stay as they are.
SKU = Column(source="sku", name="sku", encoding="typed")


def memory_store() -> Store:
    return Store.open("memory://", create=True)


def input_table(first: int, rows: int, own: dict[str, pa.Array[Any]] | None = None, **fixed: list[Any]) -> pa.Table:
    """An input batch of ``rows`` rows from row_index ``first``; ``fixed`` replaces values of INPUT_FIELDS."""
    values: dict[str, list[Any]] = {
        "row_index": list(range(first, first + rows)),
        "custom_id": [f"row-{index}" for index in range(first, first + rows)],
        "prompt": [f"Write about {index}" for index in range(first, first + rows)],
        **fixed,
    }
    arrays: list[Any] = [pa.array(values.get(item.name, [None] * rows), item.type) for item in INPUT_FIELDS]
    fields = list(INPUT_FIELDS)
    for name, array in (own or {}).items():
        arrays.append(array)
        fields.append(pa.field(SOURCE_PREFIX + name, array.type))
    return pa.table(arrays, schema=pa.schema(fields))


def skus(batch_rows: range) -> list[str]:
    return [f"{index:03d}" for index in batch_rows]


def accept_job(
    store: Store, job: str = "job", *, rows: int = 10, batch_size: int = 4, n: int = 1, **spec: Any
) -> JobFile:
    """A job in the store as submit leaves it: its input staged and its record put."""
    batches = -(-rows // batch_size)
    record = JobFile(
        id=job, stage=f"stage-{job}", created_at=WHEN,
        spec=JobSpec(model="tiny", sampling=SamplingParams(n=n), batch_size=batch_size, **spec),
        digest="0" * 64, rows=rows, result_rows=rows * n, batches=batches,
        max_tokens_total=rows * n * 256, columns=(SKU,),
    )  # fmt: skip
    for batch in range(batches):
        own = rows_of(record, batch)
        table = input_table(own.start, len(own), {"sku": pa.array(skus(own))})
        assert store.put_if_absent(layout.input_batch(record.stage, batch), write_batch(table))
    assert store.put_if_absent(layout.job_file(job), record.to_bytes())
    return record


def rows_of(job: JobFile, batch: int) -> range:
    first = batch * job.spec.batch_size
    return range(first, min(first + job.spec.batch_size, job.rows))


def ok_row(index: int, sample: int = 0, text: str = "") -> ResultRow:
    return ResultRow(
        index, sample, f"row-{index}", "ok", text=text or f"text {index}.{sample}", finish_reason="stop",
        prompt_tokens=3, completion_tokens=5, mean_logprob=-0.5, seed=index, model="tiny", model_revision="r1",
        attempt=1, worker="w1", started_at=WHEN, finished_at=WHEN,
    )  # fmt: skip


def part_bytes(job: JobFile, batch: int, text: str = "") -> bytes:
    """The part that a worker would commit."""
    own = rows_of(job, batch)
    rows = [ok_row(index, sample, text) for index in own for sample in range(job.spec.sampling.n)]
    return write_part(rows, pa.table({"sku": skus(own)}), job.columns, own.start)


def run_batches(store: Store, job: JobFile, batches: range | list[int] | None = None) -> list[Part]:
    """Commits the parts of ``batches``, of all by default."""
    chosen = range(job.batches) if batches is None else batches
    return [commit_part(store, job, batch, part_bytes(job, batch)) for batch in chosen]


def dataset(store: Store, job: str) -> pa.Table:
    """The rows of a job's result files in the order of the files."""
    paths = sorted(item.path for item in store.list(layout.results_prefix(job)) if item.path.endswith(".parquet"))
    return pa.concat_tables([pq.read_table(io.BytesIO(store.get(path)), use_threads=False) for path in paths])


def flipped(content: bytes, position: int, bit: int = 0) -> bytes:
    """``content`` with one bit turned."""
    damaged = bytearray(content)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


def worker_info(name: str = "w1", *, model: str = "tiny", slots: int = 4) -> WorkerInfo:
    return WorkerInfo(
        id=name, model=model, fingerprint="f1", host="here", pid=1, device="cpu", dtype="float32", engine="fake",
        revision="r1", slots=slots, version="0", started_at=0.0,
    )  # fmt: skip


def claims(ledger: Ledger) -> list[tuple[str, int]]:
    """Everything that can be claimed, as (job, batch); -1 is a finalization."""
    found = []
    while claim := ledger.claim(worker_info()):
        found.append((claim.job, claim.batch))
    return sorted(found)


def do_batches(store: Store, ledger: Ledger, job: JobFile, count: int) -> list[int]:
    """Claims, runs and finishes ``count`` batches of the only live job, as a worker does; which they were."""
    done = []
    for _ in range(count):
        claim = ledger.claim(worker_info())
        assert claim is not None
        assert claim.job == job.id
        (part,) = run_batches(store, job, [claim.batch])
        ledger.finish(job.id, claim.batch, claim.token, part.counts)
        done.append(claim.batch)
    return done


class Death(Exception):
    """The end of a process."""


class MortalStore(Store):
    """The files of another store; whoever uses it dies at the ``deadly``-th change, before or after it is made."""

    def __init__(self, other: Store, deadly: int, *, after: bool) -> None:
        super().__init__(other._backend, other.uri, other.root)
        self._deadly, self._after = deadly, after
        #: Changes have a number each, for many threads make them.
        self._changes = itertools.count(1)

    def put_if_absent(self, path: str, content: bytes, *, sync: bool = True) -> bool:
        with self._change():
            return super().put_if_absent(path, content, sync=sync)

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            with self._change():
                super().delete([path])

    @contextmanager
    def _change(self) -> Iterator[None]:
        dies = next(self._changes) == self._deadly
        if dies and not self._after:
            raise Death
        yield
        if dies:
            raise Death
