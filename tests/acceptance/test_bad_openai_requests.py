"""OpenAI batch files: each field that cannot be honoured is refused by name, with its line, and nothing is enqueued."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.mill import Mill
from tests.refusals import assert_refused, submit

Request = dict[str, Any]


def request(custom_id: str = "b", **body: Any) -> Request:
    given = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": given}


def completion(prompt: Any) -> Request:
    return {**request(), "url": "/v1/completions", "body": {"model": "m", "prompt": prompt}}


def without(field: str) -> Request:
    return {key: value for key, value in request().items() if key != field}


def write(mill: Mill, *requests: Any) -> str:
    return mill.write("batch.jsonl", "".join(json.dumps(one) + "\n" for one in requests))


#: Fields of the body that would change the text, with a value that is in use.
UNSUPPORTED: dict[str, Any] = {
    "frequency_penalty": 1, "presence_penalty": 0.5, "best_of": 2, "echo": True, "logit_bias": {"1": 5},
    "tools": [{"type": "function"}], "tool_choice": "auto", "functions": [{}], "function_call": "auto",
    "response_format": {"type": "json_object"}, "stream": True, "suffix": "x", "top_logprobs": 3,
    "modalities": ["audio"], "audio": {"voice": "x"}, "reasoning_effort": "high", "web_search_options": {},
    "made_up": 1, "input": "x", "prompt": "x", "instructions": "x",
}  # fmt: skip


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_a_field_that_is_not_supported_is_refused_by_name(idle: Mill, field: str) -> None:
    path = write(idle, request("a"), request("b", **{field: UNSUPPORTED[field]}))

    assert_refused(idle, submit(idle, path), f"{path}:2: body.{field} is not supported")


REQUESTS: dict[str, tuple[Any, str]] = {
    "temperature that is text": (request(temperature="hot"), "'temperature'"),
    "max_tokens of nought": (request(max_tokens=0), "'max_tokens'"),
    "max_completion_tokens that is text": (request(max_completion_tokens="x"), "'max_tokens'"),
    "n of nought": (request(n=0), "'n'"),
    "stop that is a number": (request(stop=5), "'stop'"),
    "seed below nought": (request(seed=-1), "'seed'"),
    "logprobs that is a number": (request(logprobs=3), "'logprobs'"),
    "no custom_id": (without("custom_id"), "lacks 'custom_id'"),
    "no method": (without("method"), "lacks 'method'"),
    "no url": (without("url"), "lacks 'url'"),
    "no body": (without("body"), "lacks 'body'"),
    "a plain row": ({"prompt": "a"}, "lacks 'custom_id'"),
    "an unknown field": ({**request(), "priority": 5}, "no field 'priority'"),
    "another method": ({**request(), "method": "GET"}, "use 'POST'"),
    "a method that is a list": ({**request(), "method": ["POST"]}, "use 'POST'"),
    "another endpoint": ({**request(), "url": "/v1/embeddings"}, "use /v1/chat/completions"),
    "an endpoint that is an object": ({**request(), "url": {}}, "use /v1/chat/completions"),
    "a body that is text": ({**request(), "body": "x"}, "body must be an object"),
    "a body that is null": ({**request(), "body": None}, "body must be an object"),
    "no messages": ({**request(), "body": {"model": "m"}}, "has no prompt"),
    "messages that are text": (request(messages="hi"), "is not JSON"),
    "an empty list of messages": (request(messages=[]), "has no text"),
    "an image": (request(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), "only text"),
    "a refusal": (request(messages=[{"role": "assistant", "content": "a", "refusal": "x"}]), "'refusal'"),
    "an empty custom_id": (request(""), "is empty"),
    "a custom_id that is null": ({**request(), "custom_id": None}, "is missing"),
    "a custom_id that is a list": ({**request(), "custom_id": [1]}, "no string or integer"),
    "a custom_id that is too long": (request("x" * 600), "600 characters"),
    "a custom_id with a NUL": (request("a\0"), "U+0000"),
    "a custom_id twice": (request("a"), "'a' repeats the one at line 1"),
    "several prompts": (completion(["a", "b"]), "one text"),
    "token ids": (completion([1, 2]), "not token ids"),
    "no prompt": (completion(None), "has no prompt"),
    "an empty prompt": (completion([""]), "empty"),
    "a prompt that is an object": (completion({}), "not a string"),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_that_cannot_be_honoured_is_told_with_its_line(idle: Mill, what: str) -> None:
    given, said = REQUESTS[what]
    path = write(idle, request("a"), given)

    assert_refused(idle, submit(idle, path), f"{path}:2: ", said)


@pytest.mark.parametrize("field", ["custom_id", "method", "url", "body"])
def test_a_first_request_that_lacks_a_field_is_known_for_one(idle: Mill, field: str) -> None:
    path = write(idle, without(field))

    assert_refused(idle, submit(idle, path), f"{path}:1: seems to be an OpenAI batch request, but lacks '{field}'")


@pytest.mark.parametrize(
    ("flag", "value"), [("--template", "{x}"), ("--prompt-column", "body"), ("--keep-columns", "body")]
)
def test_flags_for_other_sources_are_refused(idle: Mill, flag: str, value: str) -> None:
    assert_refused(idle, submit(idle, write(idle, request("a")), flag, value), flag)
