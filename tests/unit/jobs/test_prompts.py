"""An input batch is read as it was written, or not at all."""

from __future__ import annotations

import orjson
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import DamagedFileError
from jobs.prompts import InputBatch, read_batch, write_batch
from jobs.spec import SamplingParams
from tests.job_work import flipped, input_table

JOB = SamplingParams(temperature=0.7, max_tokens=64)

MESSAGES = [{"role": "user", "content": "Grüß dich \U0001f600"}, {"role": "assistant", "content": None}]

TABLE = input_table(
    1_000, 4, {"id": pa.array(["007", None, "", "é"]), "price": pa.array([1.5, None, 3.0, 4.0])},
    custom_id=["a", None, "c", "d"],
    prompt=["line\nand \0 null", None, None, "x" * 10_000],
    messages=[None, orjson.dumps(MESSAGES).decode(), None, None],
    params=[None, '{"max_tokens":5,"stop":["END"],"n":3}', "{}", None],
    error_code=[None, None, "empty_prompt", None], error_message=[None, None, "the prompt is empty", None],
)  # fmt: skip
CONTENT = write_batch(TABLE)
WHOLE = read_batch(CONTENT, JOB)


def test_rows_come_back_with_messages_parameters_and_errors() -> None:
    first, second, third, fourth = WHOLE.prompts
    assert (first.row_index, first.custom_id, first.prompt, first.messages) == (1_000, "a", "line\nand \0 null", None)
    assert (second.custom_id, second.prompt, second.messages) == (None, None, MESSAGES)
    assert (third.error_code, third.error_message) == ("empty_prompt", "the prompt is empty")
    assert (fourth.row_index, fourth.prompt) == (1_003, "x" * 10_000)


def test_a_row_has_the_jobs_parameters_but_for_its_own() -> None:
    own = SamplingParams(temperature=0.7, max_tokens=5, stop=("END",), n=3)
    assert [prompt.sampling for prompt in WHOLE.prompts] == [JOB, own, JOB, JOB]


def test_the_sources_own_columns_come_back_with_names_types_and_nulls() -> None:
    assert WHOLE.columns.schema.types == [pa.string(), pa.float64()]
    assert WHOLE.columns.to_pydict() == {"id": ["007", None, "", "é"], "price": [1.5, None, 3.0, 4.0]}


def test_a_source_column_may_have_the_name_of_one_of_ours() -> None:
    table = input_table(0, 1, {"prompt": pa.array(["theirs"]), "src:x": pa.array(["twice"])})
    batch = read_batch(write_batch(table), JOB)
    assert batch.prompts[0].prompt == "Write about 0"
    assert batch.columns.to_pydict() == {"prompt": ["theirs"], "src:x": ["twice"]}


@pytest.mark.parametrize(
    "params", ["{", "[1]", '"x"', '{"max_tokens":0}', '{"unknown":1}', '{"top_p":"high"}', "1", "NaN"]
)
def test_parameters_that_cannot_be_read_make_the_batch_damaged(params: str) -> None:
    with pytest.raises(DamagedFileError):
        read_batch(write_batch(input_table(0, 1, params=[params])), JOB)


def test_a_parquet_file_of_something_else_is_no_input_batch() -> None:
    with pytest.raises(DamagedFileError):
        read_batch(write_batch(pa.table({"a": [1]})), JOB)


def test_a_cut_file_is_never_taken_for_a_batch() -> None:
    for length in range(0, len(CONTENT), 10):
        with pytest.raises(DamagedFileError):
            read_batch(CONTENT[:length], JOB)


@given(st.integers(0, len(CONTENT) - 1), st.integers(0, 7))
@settings(max_examples=400, deadline=None)
def test_a_flipped_bit_gives_the_same_rows_or_a_damaged_file(position: int, bit: int) -> None:
    assert_same_or_damaged(flipped(CONTENT, position, bit))


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_bytes_of_any_kind_are_a_damaged_file(content: bytes) -> None:
    with pytest.raises(DamagedFileError):
        read_batch(content, JOB)


def assert_same_or_damaged(content: bytes) -> None:
    try:
        batch = read_batch(content, JOB)
    except DamagedFileError:
        return
    assert_equal(batch, WHOLE)


def assert_equal(found: InputBatch, expected: InputBatch) -> None:
    assert found.prompts == expected.prompts
    assert found.columns.to_pydict() == expected.columns.to_pydict()
