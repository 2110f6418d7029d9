"""A row becomes a request: its prompt or messages, id, parameters and own columns."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import InputError, SourceError
from jobs.spec import SamplingParams
from producer.requests import CheckedRow
from producer.rows import RowChecker, RowOptions
from producer.sources import SourceRow, rows_source
from producer.template import Template


def check_all(*rows: dict[str, Any], **options: Any) -> list[CheckedRow]:
    source = rows_source(rows)
    checker = RowChecker(RowOptions(**options), source)
    checked = [checker.check(row) for row in source if isinstance(row, SourceRow)]
    checker.finish()
    return checked


def check_one(row: dict[str, Any], **options: Any) -> CheckedRow:
    (checked,) = check_all(row, **options)
    return checked


def problem(row: dict[str, Any], **options: Any) -> tuple[str, str | None, str]:
    found = check_one(row, **options).problem
    assert found is not None
    return found.code, found.param, found.reason


class TestPrompts:
    def test_the_column_prompt_is_taken_by_itself(self) -> None:
        assert check_one({"prompt": " hi\n", "text": "x"}).prompt == " hi\n"

    def test_a_row_without_prompt_may_have_messages(self) -> None:
        messages = [{"role": "user", "content": "hi"}]
        first, second = check_all({"prompt": "a", "messages": messages}, {"messages": messages})
        assert (first.prompt, first.messages) == ("a", None)
        assert (second.prompt, second.messages) == (None, messages)

    def test_another_column_can_be_named(self) -> None:
        assert check_one({"q": "hi", "prompt": "x"}, prompt_column="q").prompt == "hi"

    def test_a_template_is_rendered(self) -> None:
        assert check_one({"a": 1.5}, template=Template.parse("{a}!")).prompt == "1.5!"

    def test_system_and_chat_make_messages(self) -> None:
        user = {"role": "user", "content": "hi"}
        assert check_one({"prompt": "hi"}, chat=True).messages == [user]
        with_system = check_one({"prompt": "hi"}, system="Be kind")
        assert with_system.prompt is None
        assert with_system.messages == [{"role": "system", "content": "Be kind"}, user]

    def test_messages_get_the_system_message_unless_they_bring_one(self) -> None:
        user, own = {"role": "user", "content": "hi"}, {"role": "system", "content": "own"}
        first, second = check_all({"messages": [user]}, {"messages": [own, user]}, system="S")
        assert first.messages == [{"role": "system", "content": "S"}, user]
        assert second.messages == [own, user]

    @pytest.mark.parametrize(
        ("row", "code", "reason"),
        [
            ({"prompt": None}, "invalid_row", "has no prompt: 'prompt' or 'messages' is missing or null"),
            ({"prompt": 5}, "invalid_row", "is not a string: 5"),
            ({"prompt": ["a"]}, "invalid_row", 'is not a string: ["a"]'),
            ({"prompt": ""}, "empty_prompt", "empty"),
            ({"prompt": " \n\t\u3000"}, "empty_prompt", "empty"),
        ],
    )
    def test_a_prompt_that_is_none_is_refused(self, row: dict[str, Any], code: str, reason: str) -> None:
        found = problem(row)
        assert found[0] == code
        assert reason in found[2]

    def test_a_template_without_its_value_is_refused(self) -> None:
        _, bad = check_all({"a": "x"}, {"a": None}, template=Template.parse("{a}"))
        assert bad.problem is not None
        assert (bad.problem.code, bad.problem.param) == ("template_error", "a")

    def test_a_source_without_any_prompt_is_refused_at_once(self) -> None:
        with pytest.raises(SourceError, match=r"rows:1: there is no column 'prompt' or 'messages'.*columns: a, b"):
            check_one({"a": 1, "b": 2})

    def test_a_wrong_separator_is_suspected(self) -> None:
        with pytest.raises(SourceError, match="separated by ';' instead of commas"):
            check_one({"id;prompt": "1;x"})

    @pytest.mark.parametrize("option", ["prompt_column", "messages_column", "id_column"])
    def test_a_named_column_must_exist(self, option: str) -> None:
        with pytest.raises(InputError, match=f"--{option.replace('_', '-')}: there is no column 'promt', did you mean"):
            check_one({"prompt": "x"}, **{option: "promt"})

    def test_the_flags_exclude_each_other(self) -> None:
        with pytest.raises(InputError, match="--template and --prompt-column exclude"):
            check_one({"a": "x"}, template=Template.parse("{a}"), prompt_column="a")


class TestMessages:
    def test_text_parts_are_joined_and_json_text_is_read(self) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        first, second = check_all(
            {"messages": [{"role": "user", "content": parts}]}, {"messages": '[{"role":"user","content":"c"}]'}
        )
        assert first.messages == [{"role": "user", "content": "ab"}]
        assert second.messages == [{"role": "user", "content": "c"}]

    def test_tool_calls_need_no_content(self) -> None:
        call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
        user = {"role": "user", "content": "x"}
        assert check_one({"messages": [user, call]}).messages == [user, {**call, "content": ""}]

    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ({}, "must be a list"),
            ("nonsense", "is not JSON"),
            (["a"], "messages[0] must be an object"),
            ([{"role": "robot", "content": "a"}], "role must be one of system, developer, user"),
            ([{"content": "a"}], "not None"),
            ([{"role": ["user"], "content": "a"}], "role must be"),
            ([{"role": "user"}], "content must be a string"),
            ([{"role": "user", "content": 5}], "content must be a string"),
            ([{"role": "user", "content": [{"type": "image_url"}]}], "a part of type 'image_url'"),
            ([{"role": "user", "content": ["x"]}], "a part without text"),
            ([{"role": "user", "content": "a", "audio": 1}], "a field 'audio'"),
            ([], "has no text"),
            ([{"role": "user", "content": " "}], "has no text"),
        ],
    )  # fmt: skip
    def test_what_is_no_message_is_refused(self, messages: Any, reason: str) -> None:
        assert reason in problem({"messages": messages})[2]


class TestIds:
    def test_custom_id_comes_before_id(self) -> None:
        assert check_one({"prompt": "x", "id": "b", "custom_id": "a"}).custom_id == "a"
        assert check_one({"prompt": "x", "id": 7}).custom_id == "7"
        assert check_one({"prompt": "x"}).custom_id is None

    def test_a_column_can_be_named_or_none(self) -> None:
        assert check_one({"prompt": "x", "id": "b", "sku": "c"}, id_column="sku").custom_id == "c"
        assert check_one({"prompt": "x", "id": "b"}, id_column="").custom_id is None

    @pytest.mark.parametrize("name", ["näme", "a b", "a\u00a0b", "x" * 512, "日本"])
    def test_any_printable_text_is_an_id(self, name: str) -> None:
        assert check_one({"prompt": "x", "id": name}).custom_id == name

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "is missing"), ("", "is empty"), (1.5, "no string or integer"), (True, "no string or integer"),
            ("a\nb", "control character (U+000A)"), ("a\x00", "U+0000"), ("\x85", "U+0085"),
            ("x" * 513, "513 characters"),
        ],
    )  # fmt: skip
    def test_bad_ids_are_refused(self, value: Any, reason: str) -> None:
        found = problem({"prompt": "x", "id": value})
        assert found[1] == "id"
        assert reason in found[2]


class TestParameters:
    def test_a_rows_own_column_wins_where_it_differs(self) -> None:
        sampling = SamplingParams(max_tokens=10, temperature=0.5)
        row = {"prompt": "x", "max_tokens": 20, "temperature": 0.5, "n": 3, "stop": "a", "seed": None, "top_p": ""}
        checked = check_one(row, sampling=sampling)
        assert checked.params == {"max_tokens": 20, "n": 3, "stop": ("a",)}
        assert (checked.n, checked.max_tokens) == (3, 20)

    def test_without_own_columns_the_jobs_parameters_hold(self) -> None:
        checked = check_one({"prompt": "x"}, sampling=SamplingParams(max_tokens=10, n=2))
        assert (checked.params, checked.n, checked.max_tokens) == ({}, 2, 10)

    def test_integral_floats_and_lists_are_understood(self) -> None:
        checked = check_one({"prompt": "x", "max_tokens": 64.0, "stop": ["a", "b"], "logprobs": True})
        assert checked.params == {"max_tokens": 64, "stop": ("a", "b"), "logprobs": True}

    @pytest.mark.parametrize("value", [[7, 5], [7.0, 5], (7, 5)])
    def test_stop_tokens_are_a_list_of_integers(self, value: Any) -> None:
        assert check_one({"prompt": "x", "stop_token_ids": value}).params == {"stop_token_ids": (7, 5)}

    def test_a_stop_token_may_stand_alone(self) -> None:
        assert check_one({"prompt": "x", "stop_token_ids": 7}).params == {"stop_token_ids": (7,)}

    @pytest.mark.parametrize(
        ("name", "value", "allowed"),
        [
            ("max_tokens", 0, "an integer from 1 to 1000000"),
            ("max_tokens", 1.5, "an integer"),
            ("max_tokens", True, "an integer"),
            ("temperature", -1, "a number from 0 to 100"),
            ("temperature", "hot", "a number"),
            ("top_p", 0, "a number above 0 to 1"),
            ("top_k", -1, "an integer from 0"),
            ("seed", -1, "an integer from 0 to 9223372036854775807"),
            ("seed", 2**63, "an integer"),
            ("n", {}, "an integer from 1 to 1000"),
            ("stop", [""], "none empty"),
            ("stop", ["a"] * 17, "at most 16"),
            ("stop", [1], "strings"),
            ("stop_token_ids", [-1], "none negative"),
            ("stop_token_ids", ["a"], "integers"),
            ("stop_token_ids", [1.5], "integers"),
            ("stop_token_ids", [1] * 65, "at most 64"),
            ("logprobs", 1, "true or false"),
        ],
    )
    def test_a_value_out_of_range_names_column_and_range(self, name: str, value: Any, allowed: str) -> None:
        code, param, reason = problem({"prompt": "x", name: value})
        assert (code, param) == ("bad_parameters", name)
        assert f"column '{name}'" in reason
        assert allowed in reason

    def test_equal_values_of_other_types_are_not_confused(self) -> None:
        good, bad, listed = check_all(
            {"prompt": "x", "n": 1}, {"prompt": "x", "n": True}, {"prompt": "x", "stop": [True]}
        )
        assert good.problem is None
        assert bad.problem is not None
        assert listed.problem is not None


class TestOwnColumns:
    def test_all_are_kept_but_a_custom_id_that_is_the_id(self) -> None:
        assert check_one({"prompt": "x", "custom_id": "a", "k": 1}).own == {"prompt": "x", "k": 1}
        assert check_one({"prompt": "x", "id": "a"}).own == {"prompt": "x", "id": "a"}
        assert check_one({"prompt": "x", "custom_id": "a"}, id_column="").own == {"prompt": "x", "custom_id": "a"}

    def test_columns_are_dropped_or_kept_by_name(self) -> None:
        row = {"prompt": "x", "a": 1, "b": 2}
        assert check_one(row, drop_columns=("prompt",)).own == {"a": 1, "b": 2}
        assert check_one(row, keep_columns=("a", "b"), drop_columns=("b",)).own == {"a": 1}
        assert check_one(row, keep_columns=()).own == {}

    @pytest.mark.parametrize("flag", ["drop_columns", "keep_columns"])
    def test_a_named_column_that_no_row_has_is_refused(self, flag: str) -> None:
        with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}: there is no column 'colr', did you mean"):
            check_all({"prompt": "x", "color": 1}, **{flag: ("colr",)})

    def test_a_named_column_may_first_appear_in_a_late_row(self) -> None:
        rows = [{"prompt": "x"}] * 100 + [{"prompt": "x", "late": 1}]
        assert check_all(*rows, drop_columns=("late",))[-1].own == {"prompt": "x"}

    def test_an_invalid_row_keeps_its_id_and_columns_and_has_one_sample(self) -> None:
        checked = check_one({"prompt": "", "id": "a", "k": 1}, sampling=SamplingParams(n=4))
        assert (checked.custom_id, checked.n, checked.params) == ("a", 1, {"n": 1})
        assert checked.own == {"prompt": "", "id": "a", "k": 1}
