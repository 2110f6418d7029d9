"""JSON Lines: one object a line.

orjson parses a line several times faster than the standard library, but it keeps the last of two equal keys
and turns integers beyond 64 bits into floats. Counting the quotes of the line shows the former exactly, a
large float shows the latter; only lines with either, and those that do not parse, take the slow path.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, BinaryIO, NoReturn

import orjson

from jobs.errors import Problem
from producer.columns import MAX_DEPTH, TOO_DEEP, is_too_deep
from producer.sources.base import DictBlock, Found, Item, SourceRow, grouped
from producer.sources.lines import TOO_LONG, not_utf8, read_blocks

#: A float at least this large may be an integer that orjson could not hold.
_LARGE = float(2**63)

_SCALARS = frozenset({str, int, float, bool, type(None)})

_TYPE_NAMES = {list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}

#: The marks of a text that ends too early, in the words of the standard library's parser.
_CUT_MESSAGES = ("Unterminated string", "Expecting", "Invalid \\escape", "Invalid \\uXXXX escape")


def read_jsonl(stream: BinaryIO, file: str) -> Iterator[Found]:
    """The rows of JSON Lines, and a problem for each line that is none. Blank lines are skipped.

    Raises SourceError where the rest of the file cannot be read.
    """
    for first, lines, end in read_blocks(stream, file):
        values = _read_exactly(lines)
        if values is not None:
            yield DictBlock(file, range(first, first + len(lines)), values)
        else:
            yield from grouped(_one_by_one(first, lines, end, file))


def _read_exactly(lines: list[bytes | None]) -> list[dict[str, Any]] | None:
    """The objects of these lines; None where one may be none, or may say more than its object holds."""
    try:
        values = list(map(orjson.loads, lines))  # type: ignore[arg-type]
    except orjson.JSONDecodeError:
        return None
    if set(map(type, values)) != {dict}:
        return None
    members = list(chain.from_iterable(map(dict.values, values)))
    kinds = list(map(type, members))
    present = set(kinds)
    if present <= _SCALARS:
        strings = sum(map(len, values)) + kinds.count(str)
        quotes = _count_quotes(b"".join(lines))  # type: ignore[arg-type]
        if quotes == 2 * strings and not (float in present and _has_large(members)):
            return values
    return values if all(map(_is_exact, lines, values)) else None  # type: ignore[arg-type]


def _has_large(members: list[Any]) -> bool:
    floats = [item for item in members if type(item) is float]
    return min(floats) <= -_LARGE or max(floats) >= _LARGE


def _one_by_one(first: int, lines: list[bytes | None], end: bytes, file: str) -> Iterator[Item]:
    for number, line in enumerate(lines, first):
        item = Problem(file, number, TOO_LONG) if line is None else read_object(line + end, file, number)
        if item is not None:
            yield item


def read_object(line: bytes, file: str, number: int) -> Item | None:
    """The row that a JSON object makes, or what is wrong with it; None for blank text."""
    try:
        value = orjson.loads(line)
        if type(value) is dict and _is_exact(line, value):
            return SourceRow(file, number, value)
    except orjson.JSONDecodeError:
        pass
    return None if not line.strip() else _slow(line, file, number)


def _is_exact(line: bytes, value: dict[str, Any]) -> bool:
    """Whether ``value`` is all that ``line`` says: no key was dropped, no integer rounded; and not nested too deeply.

    Every string of the line has two quotes that are not escaped, so a dropped key leaves too many.
    """
    return _count_quotes(line) == 2 * _count_strings(value)


def _count_quotes(text: bytes) -> int:
    """The quotes that are not escaped. Backslashes occur in strings alone; without the pairs of them, one before a
    quote escapes it."""
    if b"\\" not in text:
        return text.count(b'"')
    text = text.replace(b"\\\\", b"")
    return text.count(b'"') - text.count(b'\\"')


def _count_strings(value: dict[str, Any]) -> int:
    """The strings in ``value``, keys included; a count that cannot be right where the slow path has to look."""
    strings = 0
    level: list[Any] = [value]
    # Level by level, for Python's own stack is no deeper than orjson's.
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is str:
                strings += 1
            elif kind is dict:
                strings += len(item)
                below.extend(item.values())
            elif kind is list:
                below.extend(item)
            elif kind is float and not -_LARGE < item < _LARGE:
                return -1
        if not below:
            return strings
        level = below
    return -1


class _Refused(ValueError):
    """Raised inside the parser for what JSON allows in syntax but a row may not hold."""


def _slow(line: bytes, file: str, number: int) -> Item:
    """The row of a line that the fast path did not take, or what is wrong with it."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return Problem(file, number, not_utf8(error, file))
    if "\0" in text:
        return Problem(file, number, "holds a NUL byte: the file is damaged or not UTF-8")
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except json.JSONDecodeError as error:
        return Problem(file, number, _malformed(error, text))
    except RecursionError:
        return Problem(file, number, TOO_DEEP)
    except _Refused as error:
        return Problem(file, number, str(error))
    except ValueError:
        # Python's own bound, which keeps such numbers from taking hours.
        return Problem(file, number, "holds an integer of thousands of digits: write it as a string")
    if not isinstance(value, dict):
        kind = _TYPE_NAMES.get(type(value), "null")
        hint = "; for an array of rows, add --format json" if type(value) is list else ""
        return Problem(file, number, f'holds {kind}: a row must be a JSON object, such as {{"prompt": ...}}{hint}')
    reason = _unusable(line, value)
    return Problem(file, number, reason) if reason else SourceRow(file, number, value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Refused(f"the key {twice!r} occurs twice in one object")
    return members


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON: use null or a number")


def _malformed(error: json.JSONDecodeError, text: str) -> str:
    end = len(text.rstrip())
    # Not error.colno: past the newline it begins anew.
    where = f"malformed JSON at column {min(error.pos, end) + 1}: {error.msg}"
    at_end = error.pos >= end or error.msg.startswith("Unterminated string")
    if at_end and not text.endswith("\n") and error.msg.startswith(_CUT_MESSAGES):
        return f"the last line ends in the middle of a value: the file seems cut ({where})"
    return f"{where}; for JSON of several lines, add --format json" if text.strip() in ("{", "[") else where


def _unusable(line: bytes, value: dict[str, Any]) -> str | None:
    """Why an object that the standard library reads is refused all the same."""
    if is_too_deep(value):
        return TOO_DEEP
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError as error:
        if "surrogate" in str(error):
            return f"holds half of a surrogate pair, which is no character (column {error.colno})"
        if "infinity" in str(error):
            return f"holds a number that is too large for a float (column {error.colno})"
        return f"malformed JSON at column {error.colno}: {error.msg}"
    return None
