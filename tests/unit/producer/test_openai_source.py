"""Sources of OpenAI batch requests."""

from __future__ import annotations

import io
import json
from itertools import chain
from typing import Any

import pytest

from jobs.errors import InputError, Problem
from producer.check import Checking, check
from producer.rows import RowOptions
from producer.sources import Source, SourceRow, open_source

_MESSAGES = [{"role": "user", "content": "hello"}]


def request(body: dict[str, Any], url: str = "/v1/chat/completions", **envelope: Any) -> dict[str, Any]:
    return {"custom_id": "a", "method": "POST", "url": url, "body": body, **envelope}


def source(*requests: dict[str, Any]) -> Source:
    content = "".join(json.dumps(item) + "\n" for item in requests)
    return open_source("-", stdin=io.BytesIO(content.encode()))


def test_is_recognised_by_its_first_line() -> None:
    opened = source(request({"model": "gpt-x", "messages": _MESSAGES}))
    assert opened.openai
    assert any("gpt-x" in note for note in opened.notes)
    assert not source({"custom_id": "a", "prompt": "b"}).openai


def test_gives_the_messages_and_parameters_of_chat_requests() -> None:
    body = {"messages": _MESSAGES, "max_completion_tokens": 5, "temperature": 1, "stop": "\n", "stop_token_ids": [7]}
    (row,) = source(request(body))
    assert isinstance(row, SourceRow)
    assert row.values == {
        "custom_id": "a", "messages": _MESSAGES, "max_tokens": 5, "temperature": 1, "stop": "\n",
        "stop_token_ids": [7],
    }  # fmt: skip


def test_gives_the_prompt_of_completion_requests() -> None:
    (row,) = source(request({"prompt": "hello", "logprobs": 5, "n": 2}, "/v1/completions"))
    assert isinstance(row, SourceRow)
    assert row.values == {"custom_id": "a", "prompt": "hello", "logprobs": True, "n": 2}


def test_a_prompt_in_a_list_of_its_own_is_one() -> None:
    (row,) = source(request({"prompt": ["hello"]}, "/v1/completions"))
    assert isinstance(row, SourceRow)
    assert row.values["prompt"] == "hello"


def test_accepts_fields_without_effect_and_neutral_values() -> None:
    body = {"messages": _MESSAGES, "user": "u", "stream": False, "frequency_penalty": 0, "tools": [], "seed": None,
            "parallel_tool_calls": True, "modalities": ["text"], "audio": None, "safety_identifier": "x"}  # fmt: skip
    (row,) = source(request(body))
    assert isinstance(row, SourceRow)
    assert row.values == {"custom_id": "a", "messages": _MESSAGES}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (request({"messages": _MESSAGES, "tools": [{}]}), "body.tools is not supported"),
        (request({"messages": _MESSAGES, "stream": 0}), "body.stream is not supported"),
        (request({"messages": _MESSAGES, "colour": 1}), "body.colour is not supported"),
        (request({"prompt": "x"}), "body.prompt is not supported"),
        (request({"messages": _MESSAGES, "top_logprobs": 3}), "body.top_logprobs is not supported (other than as 0)"),
        (request({"messages": _MESSAGES, "response_format": {"type": "json_object"}}), "body.response_format is not"),
        (request({"messages": _MESSAGES, "audio": {}}), "body.audio is not supported"),
        (request({"prompt": ["a", "b"]}, "/v1/completions"), "body.prompt must be one text"),
        (request({"prompt": [1, 2]}, "/v1/completions"), "body.prompt must be one text"),
        (request({"input": "x"}, "/v1/embeddings"), "url '/v1/embeddings' is not supported"),
        (request({}, url=["x"]), "is not supported"),  # type: ignore[arg-type]
        (request({}, method="GET"), "method 'GET' is not supported"),
        (request([]), "body must be an object"),  # type: ignore[arg-type]
        (request({}, extra=1), "no field 'extra'"),
        ({"custom_id": "a"}, "lacks 'method'"),
    ],
)
def test_refuses_by_name_what_it_cannot_honour(bad: dict[str, Any], reason: str) -> None:
    _, problem = source(request({"messages": _MESSAGES}), bad)
    assert isinstance(problem, Problem)
    assert problem.line == 2
    assert reason in problem.reason


def test_requests_are_checked_like_any_row_and_keep_no_columns() -> None:
    opened = source(
        request({"messages": _MESSAGES, "max_completion_tokens": 5}),
        request({"messages": _MESSAGES, "temperature": -1}, custom_id="b"),
        request({"model": "m"}, custom_id="c"),
    )
    good, hot, empty = chain.from_iterable(Checking(opened, RowOptions(), skip_invalid=True).blocks())
    assert (good.custom_id, good.messages, good.params, good.own) == ("a", _MESSAGES, {"max_tokens": 5}, {})
    assert hot.problem is not None
    assert (hot.problem.code, hot.problem.param, hot.custom_id) == ("bad_parameters", "temperature", "b")
    assert empty.problem is not None
    assert empty.problem.reason.startswith("has no prompt")


def test_prompt_flags_do_not_apply_to_requests() -> None:
    with pytest.raises(InputError, match="leave out --prompt-column"):
        check(source(request({"messages": _MESSAGES})), RowOptions(prompt_column="x"))
