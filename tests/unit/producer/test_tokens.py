"""Tokens of prompts: counted with a real tokenizer, sampled, or estimated, and what does not fit into a context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import producer.counting
from jobs.spec import SamplingParams
from producer.check import CheckReport, check
from producer.counting import CountingMeter
from producer.rows import RowOptions
from producer.sources import rows_source
from producer.tokenizer import find_tokenizer
from producer.tokens import Meter

WORDS = ("write", "a", "short", "product", "description", "for", "the", "red", "canvas", "bag", "with", "pockets")


@pytest.fixture
def tokenizer(model_folder: Path) -> Tokenizer:
    return find_tokenizer(str(model_folder), download=False)


def prompts(count: int) -> Iterator[dict[str, Any]]:
    """From 1 to 40 words each, in no order that a sample could fall in step with."""
    for i in range(count):
        yield {"prompt": " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(1 + i * i % 40))}


def checked(rows: Any, meter: Meter | None, **sampling: Any) -> CheckReport:
    return check(rows_source(rows), RowOptions(sampling=SamplingParams(**sampling)), meter=meter)


def truth(tokenizer: Tokenizer, rows: Any) -> list[int]:
    return [len(tokenizer.encode(row["prompt"])) for row in rows]


def test_every_row_of_a_small_source_is_counted(tokenizer: Tokenizer) -> None:
    report = checked(prompts(500), CountingMeter(tokenizer, "copy"), max_tokens=10, n=3)
    lengths = truth(tokenizer, prompts(500))
    tokens = report.tokens
    assert (tokens.counted, tokens.estimated, tokens.error) == (500, 0, None)
    assert (tokens.total, tokens.longest) == (sum(lengths), max(lengths))
    assert (tokens.work, tokens.outputs) == (3 * sum(lengths), 500 * 3 * 10)
    assert tokens.method == "counted with copy"
    for low, high, rows in tokens.histogram():
        assert rows == sum(low <= length <= high for length in lengths)


def test_bins_are_a_row_of_powers_of_two(tokenizer: Tokenizer) -> None:
    report = checked([{"prompt": "a"}, {"prompt": "bag " * 70}], CountingMeter(tokenizer, "copy"))
    bins = report.tokens.histogram()
    assert [(low, high) for low, high, _ in bins][:3] == [(0, 15), (16, 31), (32, 63)]
    assert (bins[0][2], bins[1][2], bins[-1][2]) == (1, 0, 1)


def test_a_sample_of_many_rows_says_how_far_it_may_be_off(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer.counting, "_SAMPLE_ROWS", 400)
    monkeypatch.setattr(producer.counting, "_CHUNK_ROWS", 100)
    tokens = checked(prompts(5_000), CountingMeter(tokenizer, "copy")).tokens
    total = sum(truth(tokenizer, prompts(5_000)))
    assert tokens.error is not None
    assert 0 < tokens.error < 0.05
    assert abs(tokens.total - total) < 2 * tokens.error * total
    assert tokens.counted + tokens.estimated == 5_000
    assert tokens.counted < 2_500
    assert sum(rows for _, _, rows in tokens.histogram()) == 5_000
    assert "rows counted with copy; --exact-tokens counts all" in tokens.method

    exact = checked(prompts(5_000), CountingMeter(tokenizer, "copy", every=True)).tokens
    assert (exact.counted, exact.total) == (5_000, total)


def test_rows_at_the_limit_are_counted_even_where_others_are_not(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer.counting, "_SAMPLE_ROWS", 50)
    monkeypatch.setattr(producer.counting, "_CHUNK_ROWS", 50)
    rows = [{"prompt": "bag bag bag bag"}] * 3_000 + [{"prompt": "bag " * 70}] * 10
    length = truth(tokenizer, rows[-1:])[0]
    for context, too_long in ((length, 10), (length + 1, 0)):
        tokens = checked(rows, CountingMeter(tokenizer, "copy", context), max_tokens=1).tokens
        assert (tokens.too_long.rows, tokens.too_long.counted) == (too_long, too_long)
        assert tokens.estimated > 1_000


def test_a_row_that_needs_the_whole_context_is_too_long_and_one_less_is_cut(tokenizer: Tokenizer) -> None:
    """As the engine has it: one token at least must fit behind the prompt."""
    rows = list(prompts(41))
    length = truth(tokenizer, rows)[-1]
    report = checked(rows[-1:], CountingMeter(tokenizer, "copy", length), max_tokens=1)
    assert [(row.line, row.tokens, row.counted) for row in report.tokens.too_long.first] == [(1, length, True)]
    assert (report.tokens.cut.rows, report.tokens.outputs) == (0, 0)

    report = checked(rows[-1:], CountingMeter(tokenizer, "copy", length + 1), max_tokens=2)
    assert (report.tokens.too_long.rows, report.tokens.cut.rows, report.tokens.outputs) == (0, 1, 1)
    report = checked(rows[-1:], CountingMeter(tokenizer, "copy", length + 2), max_tokens=2)
    assert (report.tokens.too_long.rows, report.tokens.cut.rows, report.tokens.outputs) == (0, 0, 2)


def test_a_prompt_of_many_pieces_is_about_as_long_as_in_one(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer.counting, "_PIECE_CHARS", 1_000)
    text = "the lamp is warm and quiet " * 400
    tokens = checked([{"prompt": text}, {"prompt": "bag"}], CountingMeter(tokenizer, "copy")).tokens
    length = len(tokenizer.encode(text))
    assert length <= tokens.longest <= length + 3 * 11
    assert tokens.counted == 2


def test_a_few_huge_prompts_do_not_spoil_a_sample(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_SAMPLE_ROWS", 100), ("_CHUNK_ROWS", 50), ("_HUGE_CHARS", 1_000), ("_PIECE_CHARS", 10_000)):
        monkeypatch.setattr(producer.counting, name, value)
    rows = [{"prompt": "qzx" * 20_000}, *prompts(2_000)]
    total = sum(truth(tokenizer, rows))
    tokens = checked(rows, CountingMeter(tokenizer, "copy")).tokens
    assert tokens.estimated > 1_000
    assert tokens.longest == 60_000
    assert abs(tokens.total - total) < 0.02 * total

    monkeypatch.setattr(producer.counting, "_ALL_HUGE_CHARS", 100_000)
    tokens = checked([rows[0]] * 60, CountingMeter(tokenizer, "copy")).tokens
    assert (tokens.counted, tokens.estimated) == (2, 58)
    assert tokens.error is None
    assert abs(tokens.total - 60 * 60_000) <= 0.02 * 60 * 60_000


def test_a_prompt_that_the_tokenizer_fails_on_is_said_to_be_one() -> None:
    words = Tokenizer(WordLevel({"the": 0, "lamp": 1}))  # and no token for unknown words
    words.pre_tokenizer = Whitespace()
    tokens = checked([{"prompt": "the lamp"}, {"prompt": "the odd lamp"}], CountingMeter(words, "copy")).tokens
    assert (tokens.total, tokens.counted) == (2 + 3, 2)
    assert tokens.method == "counted with copy (it failed on 1 of them: error rows, tokenizer_error)"


def test_messages_are_counted_without_the_template(tokenizer: Tokenizer) -> None:
    rows = [{"messages": [{"role": "system", "content": "be warm"}, {"role": "user", "content": "the lamp"}]}]
    tokens = checked(rows, CountingMeter(tokenizer, "copy")).tokens
    contents = len(tokenizer.encode("be warm\nthe lamp", add_special_tokens=False))
    assert tokens.total == contents + 2 * 4
    assert tokens.method == "counted with copy, without the chat template"


def test_without_a_tokenizer_what_workers_measured_counts_and_otherwise_a_guess() -> None:
    rows = [{"prompt": "x" * 100}]
    measured, guess = checked(rows, Meter(None, 2.5)).tokens, checked(rows, Meter(1_000)).tokens
    assert (measured.total, measured.chars_per_token, measured.counted) == (40, 2.5, 0)
    assert measured.method == "estimated at 2.5 characters each, as workers of this model measured"
    assert (guess.total, guess.method) == (25, "estimated at 4 characters each, a guess")


def test_chats_are_estimated_with_something_for_each_message_unless_workers_measured_it() -> None:
    rows = [{"messages": [{"role": "user", "content": "x" * 40}] * 2}]
    assert checked(rows, Meter()).tokens.total == 20 + 2 * 4
    assert checked(rows, Meter(None, 4.0)).tokens.total == 20
    assert "without the chat template" in checked(rows, Meter()).tokens.method


def test_estimated_rows_beyond_the_context_are_known_as_estimates() -> None:
    rows = [{"prompt": "x" * length} for length in (36, 40, 44, 4)] + [{"prompt": None}]
    report = checked(rows, Meter(10), max_tokens=1)
    assert [(row.line, row.tokens) for row in report.tokens.too_long.first] == [(2, 10), (3, 11)]
    assert (report.tokens.too_long.rows, report.tokens.too_long.counted) == (2, 0)
    assert report.tokens.cut.rows == 0


def test_only_the_first_rows_beyond_the_context_are_named() -> None:
    report = checked([{"prompt": "x" * 100}] * 50, Meter(10))
    assert report.tokens.too_long.rows == 50
    assert [row.line for row in report.tokens.too_long.first] == list(range(1, 21))


def test_a_meter_changes_nothing_but_the_tokens() -> None:
    rows = [{"prompt": "x" * length, "n": 2} for length in (4, 60, 64, 124, 128, 4_000)] + [{"prompt": ""}]
    plain, metered = (checked(rows, meter).to_json() for meter in (None, Meter()))
    assert plain["tokens"].pop("method") == "estimated at 4 characters each"
    assert metered["tokens"].pop("method") == "estimated at 4 characters each, a guess"
    assert plain == metered
    json.dumps(plain)
