"""What makes two jobs the same work, and what parameters and names may be."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from jobs.errors import InputError
from jobs.spec import MAX_SEED, JobSpec, SamplingParams, Status, check_job_id, default_seed, split_model, validated
from jobs.status import RowCounts

WHEN = datetime(2026, 3, 1, 12, 30, 0, 123456, tzinfo=UTC)


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"sampling": SamplingParams(temperature=0.5)},
        {"sampling": SamplingParams(n=2)},
        {"sampling": SamplingParams(seed=0)},
        {"sampling": SamplingParams(stop_token_ids=(5,))},
        {"template": "{title}"},
        {"chat": True},
        {"system": "Be brief"},
    ],
)
def test_what_changes_the_text_changes_the_identity(change: dict[str, Any]) -> None:
    assert JobSpec(**{"model": "tiny", **change}).identity() != JobSpec(model="tiny").identity()


@pytest.mark.parametrize(
    "change",
    [{"priority": 3}, {"labels": {"a": "b"}}, {"deadline": WHEN}, {"batch_size": 7}, {"max_error_rate": 0.0}],
)
def test_how_a_job_is_run_is_not_part_of_its_identity(change: dict[str, Any]) -> None:
    assert JobSpec(model="tiny", **change).identity() == JobSpec(model="tiny").identity()


def test_a_parameter_that_came_later_changes_no_job_that_does_without_it() -> None:
    # As version 0.1.0 wrote it: a hash of it is in the ids of its jobs.
    assert orjson.loads(JobSpec(model="tiny").identity()) == {
        "model": "tiny", "template": None, "chat": False, "system": None,
        "sampling": {
            "max_tokens": 256, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "stop": [], "seed": None, "n": 1, "logprobs": False,
        },
    }  # fmt: skip
    stopping = JobSpec(model="tiny", sampling=SamplingParams(stop_token_ids=(7, 5)))
    assert orjson.loads(stopping.identity())["sampling"]["stop_token_ids"] == [7, 5]


@pytest.mark.parametrize("job", ["a", "A-b_9", "x" * 56])
def test_a_good_job_id_is_given_back(job: str) -> None:
    assert check_job_id(job) == job


@pytest.mark.parametrize("job", ["", "x" * 57, "a b", "a/b", "../a", "a.b", "é", "a\n", "٣", "a\0"])
def test_any_other_job_id_is_refused_by_name(job: str) -> None:
    with pytest.raises(InputError, match="job id") as raised:
        check_job_id(job)
    assert repr(job) in str(raised.value)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("max_tokens", 0), ("max_tokens", 1_000_001), ("max_tokens", 5.0), ("max_tokens", True), ("max_tokens", "5"),
        ("temperature", -0.1), ("temperature", 100.1), ("temperature", float("nan")), ("temperature", float("inf")),
        ("temperature", "1"), ("top_p", 0.0), ("top_p", 1.01), ("top_k", -1), ("top_k", 10_000_001),
        ("min_p", -0.01), ("min_p", 1.01), ("repetition_penalty", 0.0), ("repetition_penalty", 101.0),
        ("seed", -1), ("seed", MAX_SEED + 1), ("n", 0), ("n", 1_001), ("logprobs", 1), ("logprobs", "yes"),
        ("stop", "END"), ("stop", [""]), ("stop", ["x"] * 17), ("stop", ["x" * 1_001]), ("stop", [1]),
        ("stop_token_ids", 5), ("stop_token_ids", [-1]), ("stop_token_ids", [True]), ("stop_token_ids", [1.0]),
        ("stop_token_ids", ["1"]), ("stop_token_ids", list(range(65))),
        ("unknown", 1),
    ],
)  # fmt: skip
def test_a_sampling_value_out_of_range_is_refused_by_the_name_of_its_flag(name: str, bad: object) -> None:
    with pytest.raises(InputError, match="^--" + name.replace("_", "-")):
        validated(SamplingParams, {name: bad})


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("max_tokens", 1_000_000), ("temperature", 0), ("temperature", 100), ("top_p", 1), ("top_k", 10_000_000),
        ("min_p", 1), ("repetition_penalty", 0.01), ("seed", 0), ("seed", MAX_SEED), ("n", 1_000), ("logprobs", True),
        ("stop_token_ids", tuple(range(64))),
    ],
)  # fmt: skip
def test_the_ends_of_each_range_are_allowed(name: str, good: object) -> None:
    assert getattr(SamplingParams(**{name: good}), name) == good


def test_a_rows_own_values_win_and_are_checked_alike() -> None:
    base = SamplingParams(temperature=0.7, stop=("a",))
    assert base.with_overrides({}) is base
    changed = base.with_overrides({"stop": ["b", "c"], "max_tokens": 9})
    assert changed == SamplingParams(temperature=0.7, stop=("b", "c"), max_tokens=9)
    assert base.with_overrides({"stop_token_ids": [3]}).stop_token_ids == (3,)
    with pytest.raises(ValidationError):
        base.with_overrides({"top_p": 2.0})


def test_the_default_seed_of_a_row_never_changes() -> None:
    # The dataset of a job that a later version goes on with must not mix two kinds of seed.
    assert default_seed("job", 0, 0) == 5_300_421_316_299_764_605
    assert len({default_seed("job", row, sample) for row in range(100) for sample in range(3)}) == 300


@given(st.text(max_size=60), st.integers(0, 2**63 - 1), st.integers(0, 999))
def test_every_default_seed_fits_its_column(job: str, row: int, sample: int) -> None:
    assert 0 <= default_seed(job, row, sample) <= MAX_SEED


def test_only_four_statuses_are_final() -> None:
    assert {status for status in Status if status.ended} == {"completed", "cancelled", "expired", "failed"}


def test_ended_rows_are_all_but_those_to_come() -> None:
    assert RowCounts(total=10, completed=1, failed=2, cancelled=3, expired=1).ended == 7


def test_a_model_is_named_by_itself_by_its_folder_or_by_a_given_name(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert split_model("org/name") == ("org/name", "org/name")
    assert split_model("copy=./x=y") == ("copy", "./x=y")
    assert split_model(str(folder)) == ("my-model", str(folder))


@pytest.mark.parametrize("model", ["", "a b", "=x", "copy=", "x" * 201, "na\nme=x"])
def test_a_model_name_that_no_queue_can_have_is_refused(model: str) -> None:
    with pytest.raises(InputError, match="--model"):
        split_model(model)
