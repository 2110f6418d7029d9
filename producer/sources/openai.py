"""JSON Lines of OpenAI batch requests: https://platform.openai.com/docs/guides/batch.

Each line holds ``custom_id``, ``method``, ``url`` and ``body``. A body becomes a row of the same shape as any
other source's: ``prompt`` or ``messages``, and sampling parameters. ``body.model`` is ignored: the job names
the model. What would change the text and is not understood is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from jobs.errors import Problem
from jobs.spec import SamplingParams
from producer.sources.base import Item, SourceRow

_ENVELOPE = ("custom_id", "method", "url", "body")

#: Each endpoint and the field of its body that holds the prompt.
_ENDPOINTS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}

_HONOURED = frozenset(SamplingParams.model_fields)

#: Fields that do not change the text of a row.
_WITHOUT_EFFECT = frozenset({
    "model", "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prediction", "stream_options", "parallel_tool_calls",
})  # fmt: skip

#: Fields accepted at null, and at the value that means "not used" or the same.
_NEUTRAL: dict[str, Any] = {
    "stream": False, "frequency_penalty": 0, "presence_penalty": 0, "best_of": 1, "echo": False, "logit_bias": {},
    "tools": [], "tool_choice": "none", "functions": [], "function_call": "none", "response_format": {"type": "text"},
    "suffix": "", "top_logprobs": 0, "modalities": ["text"], "reasoning_effort": "none", "verbosity": "medium",
    "audio": None, "web_search_options": None,
}  # fmt: skip


def is_request(values: dict[str, Any]) -> bool:
    """Whether a first row tells that its file holds requests."""
    return all(key in values for key in _ENVELOPE)


def lacking_of_request(columns: Collection[str]) -> str | None:
    """The one field that rows with these columns lack to be requests; None where they are none, or lack more."""
    lacking = [key for key in _ENVELOPE if key not in columns]
    return lacking[0] if len(lacking) == 1 else None


def read_requests(items: Iterable[Item]) -> Iterator[Item]:
    """The rows that the requests ask for; a problem for each request that cannot be honoured."""
    for item in items:
        yield item if isinstance(item, Problem) else _row(item)


def _row(row: SourceRow) -> Item:
    values = row.values
    if absent := [key for key in _ENVELOPE if key not in values]:
        return Problem(row.file, row.line, f"the request lacks {absent[0]!r}")
    if unknown := [key for key in values if key not in _ENVELOPE]:
        return Problem(row.file, row.line, f"a batch request has no field {unknown[0]!r}")
    if values["method"] != "POST":
        return Problem(row.file, row.line, f"method {values['method']!r} is not supported: use 'POST'")
    url, body = values["url"], values["body"]
    content = _ENDPOINTS.get(url) if isinstance(url, str) else None
    if content is None:
        return Problem(row.file, row.line, f"url {url!r} is not supported: use {' or '.join(_ENDPOINTS)}")
    if not isinstance(body, dict):
        return Problem(row.file, row.line, "body must be an object")
    for key, value in body.items():
        if reason := _refusal(key, value, content):
            return Problem(row.file, row.line, reason, code="bad_parameters", param=key)
    prompt = body.get(content)
    if content == "prompt" and isinstance(prompt, list):
        # Of OpenAI's lists, a text in a list of its own is the one that means a single prompt.
        if len(prompt) != 1 or not isinstance(prompt[0], str):
            reason = "body.prompt must be one text: give each of several prompts a request, and text, not token ids"
            return Problem(row.file, row.line, reason, param="prompt")
        prompt = prompt[0]
    request = {key: value for key, value in body.items() if key in _HONOURED and value is not None}
    if (limit := body.get("max_completion_tokens")) is not None:
        request["max_tokens"] = limit
    if content == "prompt" and "logprobs" in request:
        # Here it is how many alternatives to return; whether there are any is all that is kept.
        request["logprobs"] = True
    return SourceRow(row.file, row.line, {"custom_id": values["custom_id"], content: prompt, **request})


def _refusal(key: str, value: Any, content: str) -> str | None:
    if key in _HONOURED or key in _WITHOUT_EFFECT or key in (content, "max_completion_tokens"):
        return None
    if key not in _NEUTRAL:
        return f"body.{key} is not supported"
    neutral = _NEUTRAL[key]
    if value is None or (value == neutral and isinstance(value, bool) == isinstance(neutral, bool)):
        return None
    return f"body.{key} is not supported" + (f" (other than as {neutral!r})" if neutral is not None else "")
