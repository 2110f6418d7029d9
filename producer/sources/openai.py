"""JSON Lines of OpenAI batch requests: https://platform.openai.com/docs/guides/batch.

Each line holds ``custom_id``, ``method``, ``url`` and ``body``. A body becomes a row of the same shape as any
other source's: ``prompt`` or ``messages``, and sampling parameters. ``body.model`` is ignored: the job names
the model. What would change the text and is not understood is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jobs.errors import Problem
from jobs.spec import SamplingParams
from producer.sources.base import Item, SourceRow

_ENVELOPE = ("custom_id", "method", "url", "body")

#: Each endpoint and the field of its body that holds the prompt.
_ENDPOINTS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}

_HONOURED = frozenset(SamplingParams.model_fields)

#: Fields that do not change the text of a row.
_WITHOUT_EFFECT = frozenset({"model", "user", "metadata", "store", "service_tier"})

#: Fields accepted at the value that means "not used".
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "stream": (None, False), "frequency_penalty": (None, 0), "presence_penalty": (None, 0),
    "best_of": (None, 1), "echo": (None, False), "logit_bias": (None, {}), "tools": (None, []),
    "tool_choice": (None, "none"), "response_format": (None, {"type": "text"}), "suffix": (None, ""),
}  # fmt: skip


def is_request(values: dict[str, Any]) -> bool:
    """Whether a first row tells that its file holds requests."""
    return all(key in values for key in _ENVELOPE)


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
    request = {key: value for key, value in body.items() if key in _HONOURED and value is not None}
    if (limit := body.get("max_completion_tokens")) is not None:
        request["max_tokens"] = limit
    if content == "prompt" and "logprobs" in request:
        # Here it is how many alternatives to return; whether there are any is all that is kept.
        request["logprobs"] = True
    return SourceRow(row.file, row.line, {"custom_id": values["custom_id"], content: body.get(content), **request})


def _refusal(key: str, value: Any, content: str) -> str | None:
    if key in _HONOURED or key in _WITHOUT_EFFECT or key in (content, "max_completion_tokens"):
        return None
    if key not in _NEUTRAL:
        return f"body.{key} is not supported"
    if any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[key]):
        return None
    return f"body.{key} is not supported (other than as {_NEUTRAL[key][1]!r})"
