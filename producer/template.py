"""Prompt templates: text with ``{field}``s, each a column of the row. Nothing else is substituted.

``str.format`` is not used: it would let a template walk into attributes and indexes of what it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.errors import InputError
from producer.columns import as_text, unknown_column

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def check_text(name: str, text: str) -> None:
    """Raises InputError for text that was no UTF-8 on the command line."""
    if not text.isascii() and any("\ud800" <= mark <= "\udfff" for mark in text):
        raise InputError(f"{name} is not UTF-8: put it into a file that is, or set a UTF-8 locale")


class TemplateError(Exception):
    """Raised when a row lacks a value for a field; the row's problem, not the job's."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template. ``literals`` has one item more than ``fields``: the text around them."""

    text: str
    literals: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises InputError, naming the position, for a lone brace or a field that is no plain name."""
        check_text("the template", text)
        literals, fields = [""], []
        end = 0
        for token in _TOKEN.finditer(text):
            literals[-1] += text[end : token.start()]
            end = token.end()
            if token[0] in ("{{", "}}"):
                literals[-1] += token[0][0]
            else:
                fields.append(_field_name(token, text))
                literals.append("")
        literals[-1] += text[end:]
        if not text.strip():
            raise InputError("the template is empty: give text with {column}s in it, or @FILE")
        return cls(text, tuple(literals), tuple(fields))

    @classmethod
    def load(cls, argument: str) -> Template:
        """A template as the command line gives it: its text, or ``@file``, less one newline at its end."""
        if not argument.startswith("@"):
            return cls.parse(argument)
        path = argument[1:]
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputError(f"template file {path}: not UTF-8 at byte {error.start + 1}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"template file {path!r} cannot be read: {reason}") from error
        try:
            return cls.parse(text.removesuffix("\n").removesuffix("\r"))
        except InputError as error:
            raise InputError(f"template file {path}: {error}") from error

    def check_fields(self, columns: Iterable[str]) -> None:
        """Raises InputError for a field that is none of ``columns``."""
        known = list(columns)
        for field in self.fields:
            if field not in known:
                raise InputError(f"the template's {{{field}}}: {unknown_column(field, known)}")

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt of one row: strings as they are, numbers, booleans and the rest like JSON.

        Raises TemplateError where a field's value is missing or null.
        """
        pieces = [self.literals[0]]
        for field, literal in zip(self.fields, self.literals[1:], strict=True):
            value = values.get(field)
            if type(value) is str:
                pieces.append(value)
            elif value is None:
                state = "is null" if field in values else "is missing"
                raise TemplateError(field, f"the template needs {{{field}}}, which {state} in this row")
            else:
                pieces.append(as_text(value))
            pieces.append(literal)
        return "".join(pieces)


def _field_name(token: re.Match[str], text: str) -> str:
    name = token[1]
    if name is None:
        partner = "is never closed" if token[0] == "{" else "closes nothing"
        reason = f"'{token[0]}' {partner}: write '{token[0] * 2}' for a brace"
    elif not name.strip():
        reason = "'{}' names no column: write '{{}}' for braces"
    elif any(mark in name for mark in ".[]!:"):
        reason = f"'{{{name}}}' is not a plain column name: write '{{{{' and '}}}}' for braces"
    else:
        return name
    line = text.count("\n", 0, token.start()) + 1
    column = token.start() - (text.rfind("\n", 0, token.start()) + 1) + 1
    raise InputError(f"template, line {line}, column {column}: {reason}")
