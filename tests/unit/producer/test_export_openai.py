"""OpenAI's batch output: lines that the openai package's own types take, for both endpoints, and an error file."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion

from jobs import layout
from jobs.finalize import finalize
from jobs.job_file import JobFile
from jobs.parts import commit_part
from jobs.prompts import write_batch
from jobs.results import ResultRow, write_part
from jobs.spec import Status
from jobs.store import Store
from producer.export import export
from producer.export.openai import COLUMNS, write_openai
from producer.results import head_requests, read_results
from tests.job_work import accept_job, input_table, memory_store, ok_row, rows_of, skus

MESSAGES = '[{"role":"user","content":"hello"}]'


@pytest.fixture
def store() -> Store:
    return memory_store()


def ended_job(
    store: Store, name: str = "job", *, rows: int = 10, n: int = 1, chats: tuple[int, ...] = (), **broken: ResultRow
) -> JobFile:
    """An ended job in batches of four. ``chats``: rows with messages; ``broken``: rows that have no text, by place."""
    job = accept_job(store, name, rows=rows, n=n)
    bad = {(row.row_index, row.sample_index): row for row in broken.values()}
    for batch in range(job.batches):
        own = rows_of(job, batch)
        messages = [MESSAGES if index in chats else None for index in own]
        prompts = [None if index in chats else "hello" for index in own]
        table = input_table(own.start, len(own), prompt=prompts, messages=messages)
        store.delete([layout.input_batch(job.stage, batch)])
        store.put_if_absent(layout.input_batch(job.stage, batch), write_batch(table))
        found = [bad.get((index, sample), ok_row(index, sample)) for index in own for sample in range(n)]
        commit_part(store, job, batch, write_part(found, pa.table({"sku": skus(own)}), job.columns, own.start))
    finalize(store, job, Status.COMPLETED)
    return job


def exported(store: Store, job: JobFile, first: int | None = None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The lines of the output file and of the error file."""
    out, errors = io.BytesIO(), io.BytesIO()
    batches = read_results(store, job.id, columns=COLUMNS)
    counts = write_openai(store, job, batches if first is None else head_requests(batches, first), out, lambda: errors)
    lines = [[json.loads(line) for line in file.getvalue().splitlines()] for file in (out, errors)]
    assert counts == (len(lines[0]), len(lines[1]))
    return lines[0], lines[1]


def test_messages_are_answered_with_a_chat_completion(store: Store) -> None:
    lines, errors = exported(store, ended_job(store, chats=tuple(range(10))))
    bodies = [ChatCompletion.model_validate(line["response"]["body"], strict=True) for line in lines]

    assert [line["custom_id"] for line in lines] == [f"row-{index}" for index in range(10)]
    assert [body.choices[0].message.content for body in bodies] == [f"text {index}.0" for index in range(10)]
    assert {body.choices[0].finish_reason for body in bodies} == {"stop"}
    assert bodies[0].usage is not None
    assert (bodies[0].usage.prompt_tokens, bodies[0].usage.completion_tokens, bodies[0].usage.total_tokens) == (3, 5, 8)
    assert {(line["response"]["status_code"], line["error"]) for line in lines} == {(200, None)}
    assert errors == []


def test_a_prompt_is_answered_with_a_text_completion_whose_choices_are_its_samples(store: Store) -> None:
    lines, _ = exported(store, ended_job(store, n=3))
    bodies = [Completion.model_validate(line["response"]["body"], strict=True) for line in lines]

    assert [[choice.text for choice in body.choices] for body in bodies] == [
        [f"text {index}.{sample}" for sample in range(3)] for index in range(10)
    ]
    assert [choice.index for choice in bodies[0].choices] == [0, 1, 2]
    assert bodies[0].usage is not None
    assert (bodies[0].usage.completion_tokens, bodies[0].usage.total_tokens) == (15, 18)


def test_each_row_of_a_mixed_file_is_answered_as_it_asked(store: Store) -> None:
    lines, _ = exported(store, ended_job(store, chats=(1, 4, 5, 6, 7)))

    kinds = [line["response"]["body"]["object"] for line in lines]
    assert [index for index, kind in enumerate(kinds) if kind == "chat.completion"] == [1, 4, 5, 6, 7]
    for line in lines:
        body = line["response"]["body"]
        (ChatCompletion if body["object"] == "chat.completion" else Completion).model_validate(body, strict=True)


def test_requests_without_a_text_go_to_the_error_file_with_openai_s_codes(store: Store) -> None:
    job = ended_job(
        store,
        n=2,
        one=ResultRow(1, 1, "row-1", "error", "prompt_too_long", "too long", finish_reason="error"),
        two=ResultRow(5, 0, "row-5", "cancelled"),
        three=ResultRow(9, 0, None, "expired"),
    )
    lines, errors = exported(store, job)

    assert [line["custom_id"] for line in lines] == [f"row-{index}" for index in (0, 2, 3, 4, 6, 7, 8)]
    assert [(line["custom_id"], line["response"], line["error"]["code"]) for line in errors] == [
        ("row-1", None, "prompt_too_long"), ("row-5", None, "batch_cancelled"), ("row-9", None, "batch_expired"),
    ]  # fmt: skip
    assert all(line["error"]["message"] for line in errors)


def test_ids_are_the_same_each_time_and_differ_between_jobs(store: Store) -> None:
    first, second = ended_job(store, "first"), ended_job(store, "second")

    assert exported(store, first) == exported(store, first)
    ids = [
        name
        for job in (first, second)
        for line in exported(store, job)[0]
        for name in (line["id"], line["response"]["request_id"], line["response"]["body"]["id"])
    ]
    assert len(set(ids)) == len(ids) == 60


def test_the_first_requests_come_with_all_their_samples(store: Store) -> None:
    lines, _ = exported(store, ended_job(store, n=3), first=2)

    assert [len(line["response"]["body"]["choices"]) for line in lines] == [3, 3]
    assert len(exported(store, ended_job(store, "other", n=3), first=99)[0]) == 10


def test_rows_whose_input_is_gone_count_as_those_before_them(store: Store) -> None:
    job = ended_job(store, chats=tuple(range(8)))
    store.delete([layout.input_batch(job.stage, 1)])

    kinds = [line["response"]["body"]["object"] for line in exported(store, job)[0]]
    assert kinds == ["chat.completion"] * 8 + ["text_completion"] * 2


def test_a_pipe_takes_what_failed_too_for_nothing_lies_beside_it(store: Store, tmp_path: Path) -> None:
    failed = ResultRow(1, 0, None, "error", error_code="poison")
    ended_job(store, rows=4, failed=failed)
    pipe = tmp_path / "out.jsonl"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        written = export(store, "job", str(pipe), "openai")
        lines = [json.loads(line) for line in os.read(reader, 1 << 16).splitlines()]
    finally:
        os.close(reader)

    assert (written.rows, written.failed, written.errors) == (4, 1, None)
    assert sorted(line["custom_id"] for line in lines if line["error"]) == ["row-1"]
    assert len(lines) == 4
    assert list(tmp_path.iterdir()) == [pipe]
