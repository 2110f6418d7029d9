"""The input batch file: a slice of the source's rows, rendered, with the source's own columns beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa

from jobs.errors import DamagedFileError
from jobs.parquet import read_parquet, to_parquet
from jobs.spec import SamplingParams

#: Before the name of each of the source's own columns, so that none can clash with ours.
SOURCE_PREFIX = "src:"

#: The columns of every input batch; the source's own follow.
INPUT_FIELDS = (
    pa.field("row_index", pa.int64(), nullable=False),
    pa.field("custom_id", pa.string()),
    # The rendered prompt, or null where the row has messages or could not be read.
    pa.field("prompt", pa.large_string()),
    # Chat messages as JSON text; the worker renders them with the model's own template.
    pa.field("messages", pa.large_string()),
    # Sampling parameters that differ from the job's, as a JSON object.
    pa.field("params", pa.string()),
    # Set for a row that --skip-invalid let through: it becomes an error row as it is.
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One input row as the worker sees it."""

    row_index: int
    custom_id: str | None
    prompt: str | None
    messages: list[dict[str, Any]] | None
    sampling: SamplingParams
    error_code: str | None = None
    error_message: str | None = None
    #: Of a retry, the samples to generate; None: all.
    chosen: tuple[int, ...] | None = None

    @property
    def samples(self) -> Sequence[int]:
        """The samples to generate: all ``n``, but for retries."""
        return range(self.sampling.n) if self.chosen is None else self.chosen


@dataclass(frozen=True, slots=True)
class InputBatch:
    """A batch's rows to generate, and the source's own columns as staged (names without the prefix).

    The batch of a retry has only the prompts of which a sample is to be generated, and the result rows of the others.
    """

    prompts: list[Prompt]
    columns: pa.Table
    carried: pa.Table | None = None


def write_batch(table: pa.Table) -> bytes:
    """The Parquet bytes of one input batch: the INPUT_FIELDS, then ``src:`` columns."""
    return to_parquet(table, plain=True)


def read_batch(content: bytes, sampling: SamplingParams) -> InputBatch:
    """The rows of one input batch; ``sampling`` are the job's parameters.

    Raises DamagedFileError where the bytes are not a whole input batch.
    """
    try:
        table = read_parquet(content)
        own = [name for name in table.column_names if name.startswith(SOURCE_PREFIX)]
        columns = table.select(own).rename_columns([name.removeprefix(SOURCE_PREFIX) for name in own])
        rows = table.select([field.name for field in INPUT_FIELDS]).to_pylist()
        return InputBatch([_prompt(row, sampling) for row in rows], columns)
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"the input batch cannot be read: {error}") from error


def _prompt(row: dict[str, Any], sampling: SamplingParams) -> Prompt:
    messages, params = row["messages"], row["params"]
    return Prompt(
        row_index=row["row_index"],
        custom_id=row["custom_id"],
        prompt=row["prompt"],
        messages=orjson.loads(messages) if messages is not None else None,
        sampling=sampling.with_overrides(orjson.loads(params)) if params else sampling,
        error_code=row["error_code"],
        error_message=row["error_message"],
    )
