"""Sampling parameters that a row brings in columns of their names; they win over the job's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from pydantic import ValidationError

from jobs.spec import SamplingParams
from producer.columns import as_json
from producer.problems import RowProblem

#: Columns of these names hold sampling parameters.
PARAMETERS = frozenset(SamplingParams.model_fields)

_INTEGERS = frozenset({"max_tokens", "top_k", "seed", "n"})
_FLOATS = frozenset({"temperature", "top_p", "min_p", "repetition_penalty"})
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

#: Values remembered; where each row has its own seed, there is no end of them.
_CACHE_SIZE = 4096

#: Marks a refused value in the cache.
_BAD = object()


class Overrides:
    """Reads the overrides of rows, validating each different value once.

    ``text_values``: the columns are text (CSV), so numbers are to be parsed.
    """

    def __init__(self, job: SamplingParams, *, text_values: bool) -> None:
        self._job = dict(job)
        self._text_values = text_values
        self._cache: dict[tuple[str, type, Any], Any] = {}

    def read(self, values: dict[str, Any]) -> dict[str, Any]:
        """The row's parameters that differ from the job's. Raises RowProblem for a value out of range."""
        params = {}
        for name in PARAMETERS & values.keys():
            raw = values[name]
            if raw is None or raw == "":
                continue
            value = self._checked(name, raw)
            if value != self._job[name]:
                params[name] = value
        return params

    def _checked(self, name: str, raw: Any) -> Any:
        key = _cache_key(name, raw)
        value = self._cache.get(key) if key else None
        if value is None:
            value = self._validate(name, raw)
            if key:
                if len(self._cache) >= _CACHE_SIZE:
                    self._cache.clear()
                self._cache[key] = value
        if value is _BAD:
            shown = as_json(raw)[:60] if raw == raw else "NaN"
            raise RowProblem(
                f"column {name!r}: {shown} is not allowed: {allowed(name)}",
                "bad_parameters",
                name,
            )
        return value

    def _validate(self, name: str, raw: Any) -> Any:
        try:
            value = _from_text(name, raw) if self._text_values and isinstance(raw, str) else _plain(name, raw)
            return getattr(SamplingParams.model_validate({name: value}), name)
        except (ValidationError, ValueError):
            return _BAD


def allowed(name: str) -> str:
    """What a sampling parameter may be, in words."""
    if name == "stop":
        return "a string or a list of at most 16 strings, none empty or longer than 1000 characters"
    if name == "stop_token_ids":
        return "an integer or a list of at most 64 integers, none negative"
    if name == "logprobs":
        return "true or false"
    kind = "an integer" if name in _INTEGERS else "a number"
    bounds = {key: value for item in SamplingParams.model_fields[name].metadata for key, value in _bounds(item)}
    low = f"from {bounds['ge']:g}" if "ge" in bounds else f"above {bounds['gt']:g}"
    return f"{kind} {low} to {bounds['le']:.15g}" if bounds["le"] < 2**53 else f"{kind} {low} to {bounds['le']}"


def _bounds(item: Any) -> Iterable[tuple[str, Any]]:
    return [(key, getattr(item, key)) for key in ("ge", "gt", "le") if hasattr(item, key)]


def _cache_key(name: str, raw: Any) -> tuple[str, type, Any] | None:
    """A key that no other value has, for what can be one; 1, 1.0 and True are equal but not the same."""
    if isinstance(raw, (str, int, float)):
        return name, type(raw), raw
    if isinstance(raw, list) and any(all(type(item) is kind for item in raw) for kind in (str, int)):
        return name, list, tuple(raw)
    return None


def _plain(name: str, raw: Any) -> Any:
    """A JSON value in the parameter's type: a lone stop string or token, an integer written as 64.0."""
    if name == "stop" and isinstance(raw, str):
        return (raw,)
    if name == "stop_token_ids":
        items = raw if isinstance(raw, list) else [raw]
        return tuple(int(item) if isinstance(item, float) and item.is_integer() else item for item in items)
    if name in _INTEGERS and isinstance(raw, float) and raw.is_integer():
        return int(raw)
    return raw


def _from_text(name: str, text: str) -> Any:
    """A text field in the parameter's type. Raises ValueError. What ends a text may be a JSON list."""
    if name in _INTEGERS:
        return _plain(name, int(text) if text.strip().lstrip("+-").isdigit() else float(text))
    if name in _FLOATS:
        return float(text)
    if name == "logprobs":
        return _BOOLEANS.get(text.strip().lower(), text)
    if name == "stop_token_ids":
        return _plain(name, orjson.loads(text))
    return orjson.loads(text) if text.lstrip().startswith("[") else (text,)
