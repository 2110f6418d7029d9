"""A pass over a source: all problems found, nothing accepted unless all is good."""

from __future__ import annotations

import io
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import InputError, SourceError
from jobs.spec import SamplingParams
from producer.check import Checking, CheckReport, check
from producer.duplicates import DuplicateFinder
from producer.rows import RowOptions
from producer.sources import open_source, rows_source


def checked(*rows: dict[str, Any], **options: Any) -> CheckReport:
    return check(rows_source(rows), RowOptions(), **options)


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_good_rows_are_summed_up() -> None:
    rows = [{"prompt": "x" * length, "n": 2} for length in (1, 3, 3, 900)]
    report = check(rows_source(rows), RowOptions(sampling=SamplingParams(max_tokens=10)), batch_size=3, show=2)
    assert report.ok
    assert (report.rows, report.batches, report.result_rows, report.max_tokens) == (4, 2, 8, 80)
    assert report.lengths.histogram()[0] == (1, 1, 1)
    assert report.lengths.histogram()[1] == (2, 3, 2)
    assert report.lengths.histogram()[-1] == (512, 1023, 1)
    assert sum(count for _, _, count in report.lengths.histogram()) == 4
    assert report.lengths.longest == 900
    assert report.tokens.total == 227
    assert report.shown == ["x", "xxx"]
    json.dumps(report.to_json())


def test_messages_are_shown_and_counted() -> None:
    report = check(rows_source([{"prompt": "four"}]), RowOptions(system="abc"), show=5)
    assert report.lengths.total == 7
    assert isinstance(report.shown[0], list)


def test_all_problems_are_counted_and_the_first_are_kept() -> None:
    report = checked(*[{"prompt": "x" if i == 0 else None} for i in range(50)], limit_problems=5)
    assert not report.ok
    assert (report.total_problems, report.invalid) == (49, 49)
    assert [problem.line for problem in report.problems] == [2, 3, 4, 5, 6]
    with pytest.raises(SourceError) as caught:
        report.raise_if_bad()
    assert caught.value.total == 49


def test_no_row_is_staged_after_a_bad_one_but_all_are_checked() -> None:
    checking = Checking(rows_source([{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}]), RowOptions())
    assert list(chain.from_iterable(checking.blocks())) == []  # the three are one block
    assert checking.report.rows == 3


def test_skip_invalid_stages_bad_rows_as_error_rows() -> None:
    rows = [{"prompt": "a"}, {"prompt": ""}, {"prompt": "b"}]
    checking = Checking(rows_source(rows), RowOptions(), skip_invalid=True)
    codes = [row.problem and row.problem.code for row in chain.from_iterable(checking.blocks())]
    assert codes == [None, "empty_prompt", None]
    assert checking.report.ok
    assert checking.report.invalid == 1


def test_skip_invalid_wants_at_least_one_good_row() -> None:
    assert not checked({"prompt": ""}, {"prompt": None}, skip_invalid=True).ok


def test_a_line_that_is_no_row_becomes_an_error_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\nnonsense\n')
    checking = Checking(open_source(str(path)), RowOptions(), skip_invalid=True)
    _, bad = chain.from_iterable(checking.blocks())
    assert bad.problem is not None
    assert (bad.line, bad.n, bad.own) == (2, 1, {})


def test_repeated_ids_are_named_with_both_lines() -> None:
    report = checked(*[{"prompt": "x", "id": name} for name in "abcab"], skip_invalid=True)
    assert [str(problem) for problem in report.problems] == [
        "rows:4: id 'a' repeats the one at line 1",
        "rows:5: id 'b' repeats the one at line 2",
    ]
    assert not report.ok, "which of them is meant is not for --skip-invalid to say"


def test_ids_repeat_across_files(tmp_path: Path) -> None:
    first = jsonl(tmp_path / "a.jsonl", {"prompt": "x", "id": 1}, {"prompt": "x", "id": 2})
    second = jsonl(tmp_path / "b.jsonl", {"prompt": "x", "id": 3}, {"prompt": "x", "id": "2"})
    report = check(open_source(f"{tmp_path}/*.jsonl"), RowOptions())
    assert [str(problem) for problem in report.problems] == [f"{second}:2: id '2' repeats the one at {first}:2"]


def test_ids_of_stdin_repeat_by_line() -> None:
    content = b'{"prompt": "x", "id": "a"}\n' * 2
    report = check(open_source("-", stdin=io.BytesIO(content)), RowOptions())
    assert [str(problem) for problem in report.problems] == ["stdin:2: the id repeats the one at line 1"]


def test_ids_that_only_share_a_hash_are_good(monkeypatch: pytest.MonkeyPatch) -> None:
    checking = Checking(rows_source([{"prompt": "x", "id": name} for name in "abc"]), RowOptions())
    monkeypatch.setattr(checking, "_ids", DuplicateFinder(hash_id=lambda name: 5))
    assert len(list(chain.from_iterable(checking.blocks()))) == 3
    assert checking.report.ok


def test_many_repeated_ids_are_counted_and_few_are_kept() -> None:
    report = checked(*[{"prompt": "x", "id": "same"}] * 100)
    assert report.total_problems == 99
    assert [problem.line for problem in report.problems] == list(range(2, 22))


def test_a_file_that_ends_in_damage_is_fatal_and_keeps_earlier_problems(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt\n""\ngood\n"never closed\n')
    report = check(open_source(str(path)), RowOptions(), skip_invalid=True)
    assert [problem.line for problem in report.problems] == [2, 4]
    assert not report.ok


def test_options_that_do_not_fit_are_refused_before_the_first_row() -> None:
    with pytest.raises(InputError, match="--prompt-column"):
        check(rows_source([{"prompt": "x"}]), RowOptions(prompt_column="q"))


@pytest.mark.parametrize(("text", "ids"), [("7", (7,)), ('"[7, 5]"', (7, 5)), ("7.0", (7,))])
def test_stop_tokens_of_csv_are_one_number_or_a_list(tmp_path: Path, text: str, ids: tuple[int, ...]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,stop_token_ids\nx,{text}\ny,end\n")
    good, bad = chain.from_iterable(Checking(open_source(str(path)), RowOptions(), skip_invalid=True).blocks())
    assert good.params == {"stop_token_ids": ids}
    assert bad.problem is not None
    assert str(bad.problem).endswith('"end" is not allowed: an integer or a list of at most 64 integers, none negative')


def test_csv_parameters_are_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,max_tokens,temperature,stop,logprobs,n,seed\nx,5,0.5,"[""a"",""b""]",True,,7\nx,six,,,,,\n')
    good, bad = chain.from_iterable(Checking(open_source(str(path)), RowOptions(), skip_invalid=True).blocks())
    assert good.params == {"max_tokens": 5, "temperature": 0.5, "stop": ("a", "b"), "logprobs": True, "seed": 7}
    assert bad.problem is not None
    assert str(bad.problem) == f"{path}:3: column 'max_tokens': \"six\" is not allowed: an integer from 1 to 1000000"


@pytest.mark.parametrize("once", [False, True])
def test_ids_repeat_in_rows_of_one_line(tmp_path: Path, once: bool) -> None:
    rows = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}, {"id": "a", "prompt": "z"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    stdin = io.BytesIO(path.read_bytes())
    report = check(open_source("-", format="json", stdin=stdin) if once else open_source(str(path)), RowOptions())
    assert [problem.reason for problem in report.problems] == [
        "the id repeats the one at line 1" if once else "id 'a' repeats the one at line 1"
    ]
    assert not report.ok
