"""The output and error files of the OpenAI Batch API: https://platform.openai.com/docs/guides/batch.

A line for each request, its samples as choices; one of which any sample has no text has failed. A request whose row
had messages is answered with a ``chat.completion``, one that had a prompt with a ``text_completion``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from jobs import layout
from jobs.job_file import JobFile
from jobs.parquet import open_parquet
from jobs.store import Store
from producer.results import fetch

#: The columns of the results that a line is made of.
COLUMNS = (
    "row_index", "sample_index", "custom_id", "status", "error_code", "error_message", "text", "finish_reason",
    "prompt_tokens", "completion_tokens", "model", "model_revision", "finished_at",
)  # fmt: skip

#: OpenAI's codes and words for what was never run.
_NOT_RUN = {
    "cancelled": ("batch_cancelled", "This request could not be executed before the batch was cancelled."),
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
}

#: Input batches that are fetched at once.
_WINDOW = 8


def write_openai(
    store: Store,
    record: JobFile,
    batches: Iterable[pa.RecordBatch],
    out: BinaryIO,
    errors: Callable[[], BinaryIO],
) -> tuple[int, int]:
    """The numbers of requests written that succeeded, to ``out``, and that failed, to what ``errors`` opens.

    ``batches`` have the COLUMNS.
    """
    succeeded = failed = 0
    chats = _Chats(store, record)
    rows = (row for batch in batches for row in batch.to_pylist())
    for index, group in groupby(rows, key=lambda row: row["row_index"]):
        samples = list(group)
        bad = next((row for row in samples if row["status"] != "ok"), None)
        line = _envelope(record.id, samples[0])
        if bad is not None:
            failed += 1
            line |= {"response": None, "error": _error(bad)}
        else:
            succeeded += 1
            line |= {"response": _response(record.id, samples, chats.is_chat(index)), "error": None}
        (out if bad is None else errors()).write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    return succeeded, failed


def _envelope(job: str, row: dict[str, Any]) -> dict[str, Any]:
    custom_id = row["custom_id"] if row["custom_id"] is not None else f"row-{row['row_index']}"
    return {"id": f"batch_req_{job}-{row['row_index']}", "custom_id": custom_id}


def _error(row: dict[str, Any]) -> dict[str, str]:
    if row["status"] in _NOT_RUN:
        code, message = _NOT_RUN[row["status"]]
        return {"code": code, "message": message}
    code = row["error_code"] or "internal_error"
    return {"code": code, "message": row["error_message"] or code}


def _response(job: str, samples: list[dict[str, Any]], chat: bool) -> dict[str, Any]:
    first = samples[0]
    name = f"{job}-{first['row_index']}"
    prompt, completion = first["prompt_tokens"], sum(row["completion_tokens"] for row in samples)
    body = {
        "id": f"chatcmpl-{name}" if chat else f"cmpl-{name}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(first["finished_at"].timestamp()),
        "model": first["model"],
        "choices": [_choice(row, chat) for row in samples],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
        "system_fingerprint": first["model_revision"],
    }
    return {"status_code": 200, "request_id": f"req_{name}", "body": body}


def _choice(row: dict[str, Any], chat: bool) -> dict[str, Any]:
    text = row["text"]
    said = {"message": {"role": "assistant", "content": text, "refusal": None}} if chat else {"text": text}
    return {"index": row["sample_index"], **said, "logprobs": None, "finish_reason": row["finish_reason"]}


class _Chats:
    """Tells of rows, in ascending order, whether they had messages.

    Their input batches, which stay in the store, say so; the rows of one that is gone or cannot be read count as those
    of the batch before it.
    """

    def __init__(self, store: Store, record: JobFile) -> None:
        self._store = store
        self._record = record
        self._last = record.spec.chat or record.spec.system is not None
        self._known: dict[int, list[bool]] = {}

    def is_chat(self, row: int) -> bool:
        batch = row // self._record.spec.batch_size
        if batch not in self._known:
            self._known = dict(self._read(range(batch, min(batch + _WINDOW, self._record.batches))))
        return self._known[batch][row - self._record.batch_rows(batch).start]

    def _read(self, batches: range) -> Iterator[tuple[int, list[bool]]]:
        paths = [layout.input_batch(self._record.stage, batch) for batch in batches]
        for batch, content in zip(batches, fetch(self._store, paths), strict=True):
            count = len(self._record.batch_rows(batch))
            found = None if content is None else _has_messages(content)
            if found is None or len(found) != count:
                found = [self._last] * count
            self._last = found[-1]
            yield batch, found


def _has_messages(content: bytes) -> list[bool] | None:
    """Of each row of an input batch; None where it cannot be read."""
    try:
        messages = open_parquet(content).read(columns=["messages"], use_threads=False)["messages"]
        return pc.is_valid(messages).to_pylist()  # type: ignore[return-value]
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError):
        return None
