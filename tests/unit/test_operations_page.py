"""The figures of docs/operations.md are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from jobs import job_file, reconcile, spec, stages, store
from jobs.finalize import TARGET_FILE_BYTES
from jobs.ledger import keys
from jobs.spec import JobSpec, SamplingParams
from producer import rows
from producer.cli import flags
from producer.sources import lines
from worker.cli import start

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def limit(model: type[Any], name: str, which: str) -> Any:
    """What a field of a pydantic model allows."""
    return next(getattr(item, which) for item in model.model_fields[name].metadata if hasattr(item, which))


def most(flag: str) -> int:
    """What a flag of the worker allows."""
    (option,) = get_type_hints(start, include_extras=True)[flag].__metadata__
    return int(option.max)


@pytest.mark.parametrize(
    ("row", "figures"),
    [
        ("rows of a batch", [JobSpec(model="m").batch_size, limit(JobSpec, "batch_size", "le")]),
        ("a line of a source, or a JSON value", [lines.MAX_LINE >> 20]),
        ("id of a job", [spec.MAX_JOB_ID]),
        ("id of a row", [rows._MAX_ID]),
        ("name of a model", [limit(JobSpec, "model", "max_length")]),
        ("labels of a job", [flags._LABELS, flags._LABEL]),
        ("`--n`; `--max-tokens`", [limit(SamplingParams, "n", "le"), limit(SamplingParams, "max_tokens", "le")]),
        ("`--priority`", [limit(JobSpec, "priority", "ge"), limit(JobSpec, "priority", "le")]),
        ("`--concurrency`; `--max-rows`", [most("concurrency"), most("max_rows")]),
        ("a result file", [TARGET_FILE_BYTES >> 20]),
        ("stages that no job names (a submit that was killed)", [stages.ABANDONED_AFTER.days]),
        ("files half written, on a disk", [stages._UNFINISHED_AFTER.days]),
        ("a look for all of these", [int(reconcile.CLEANUP_INTERVAL_S / 3600)]),
        ("a look for jobs that Redis does not know", [int(reconcile.ADOPT_INTERVAL_S)]),
    ],
)
def test_a_limit_on_the_page_is_what_the_code_has(row: str, figures: list[int]) -> None:
    found = re.search(rf"^\| {re.escape(row)} \|(.*)\|", PAGE, re.MULTILINE)
    assert found, f"no row {row!r}"
    said = [int(number.replace(",", "")) for number in re.findall(r"(?<![\w.])-?\d[\d,]*", found[1])]
    assert [figure for figure in figures if figure not in said] == []


def test_the_versions_on_the_page_are_those_of_this_release() -> None:
    assert job_file.JOB_VERSIONS == (job_file.JOB_VERSION,)
    assert f"this release writes and reads {job_file.JOB_VERSION} |" in PAGE
    assert f"this release has {keys.LAYOUT} |" in PAGE
    assert f"`_promptmill.json`; this release has {store.FORMAT_VERSION} |" in PAGE
