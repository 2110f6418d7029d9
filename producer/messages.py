"""Chat messages in the form of OpenAI's chat completions: checked here, rendered by the worker."""

from __future__ import annotations

from typing import Any

import orjson

from producer.problems import RowProblem
from producer.sources.base import SourceRow
from producer.sources.jsonl import read_object

_ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
#: What the optional ones are.
_KINDS = {"name": (str, "string"), "tool_call_id": (str, "string"), "tool_calls": (list, "list")}


def check_messages(value: Any, column: str) -> list[dict[str, Any]]:
    """The messages with their contents as plain strings. A string is read as JSON. Raises RowProblem."""
    if isinstance(value, str):
        value = _from_text(value, column)
    if not isinstance(value, list):
        raise RowProblem(f"column {column!r} must be a list of messages", param=column)
    messages = [_message(item, f"{column}[{index}]", column) for index, item in enumerate(value)]
    if not any(message["content"] and not message["content"].isspace() for message in messages):
        raise RowProblem(f"column {column!r} has no text", "empty_prompt", column)
    return messages


def _from_text(text: str, column: str) -> Any:
    """What a JSON text holds, as strictly as a line of JSON Lines is read. Raises RowProblem."""
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RowProblem(f"column {column!r} is not JSON: {error.msg}", param=column) from error
    found = read_object(b'{"":' + text.encode() + b"}", "", 0)
    if not isinstance(found, SourceRow):
        raise RowProblem(f"column {column!r} {found.reason if found else 'is empty'}", param=column)
    return found.values[""]


def with_system(messages: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
    """The messages with the job's system message before them, unless they bring their own."""
    if not system or messages[0]["role"] in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _message(given: Any, where: str, column: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise RowProblem(f"{where} must be an object with role and content", param=column)
    item: dict[str, Any] = given
    if None in item.values():  # columns of structs have every field in every message
        item = {key: value for key, value in item.items() if value is not None or key == "content"}
    if unknown := item.keys() - _KEYS:
        raise RowProblem(f"{where} has a field {min(unknown)!r}, which is not supported", param=column)
    role = item.get("role")
    if role not in _ROLES:
        raise RowProblem(f"{where}.role must be one of {', '.join(_ROLES)}, not {role!r}", param=column)
    for name, (kind, said) in _KINDS.items():
        if name in item and not isinstance(item[name], kind):
            raise RowProblem(f"{where}.{name} must be a {said}", param=column)
    content = item.get("content")
    if type(content) is str:
        return item
    if content is None and role == "assistant" and item.get("tool_calls"):
        return {**item, "content": ""}
    if not isinstance(content, list):
        raise RowProblem(f"{where}.content must be a string", param=column)
    return {**item, "content": "".join(_part(part, where, column) for part in content)}


def _part(part: Any, where: str, column: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind != "text" or not isinstance(part.get("text"), str):
        shown = f"of type {kind!r}" if kind and kind != "text" else "without text"
        raise RowProblem(f"{where}.content has a part {shown}: only text is supported", param=column)
    return str(part["text"])
