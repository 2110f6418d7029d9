"""A row of a source -> a checked request: its prompt or messages, its id, and its own sampling parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from jobs.errors import InputError, Problem, SourceError
from jobs.spec import SamplingParams
from producer.columns import Own, as_json, unknown_column
from producer.messages import check_messages, with_system
from producer.near import did_you_mean
from producer.overrides import PARAMETERS, Overrides
from producer.problems import RowProblem
from producer.requests import CheckedRow, CheckedRows, error_row
from producer.sources import ArrowBlock, Block, Source, SourceRow
from producer.sources.openai import lacking_of_request
from producer.template import Template, TemplateError

_CUSTOM_ID, _PROMPT, _MESSAGES = "custom_id", "prompt", "messages"
_MAX_ID = 512
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How rows become requests: the prompt, sampling and column flags of the command line.

    Without ``template``, ``prompt_column`` and ``messages_column``, a row's ``prompt`` is taken, else its
    ``messages``. ``id_column``: None is ``custom_id``, else ``id``, where there is one; an empty string is
    none. ``keep_columns``: None keeps all.
    """

    template: Template | None = None
    prompt_column: str | None = None
    messages_column: str | None = None
    id_column: str | None = None
    system: str | None = None
    chat: bool = False
    sampling: SamplingParams = field(default_factory=SamplingParams)
    keep_columns: tuple[str, ...] | None = None
    drop_columns: tuple[str, ...] = ()


class RowChecker:
    """Checks the rows of one source. Raises InputError where the options do not fit the source's columns."""

    def __init__(self, options: RowOptions, source: Source) -> None:
        self._options = options
        self._sampling = options.sampling
        self._overrides = Overrides(options.sampling, text_values=source.columns_typed)
        self._openai = source.openai
        self._template = options.template
        self._as_chat = options.chat or bool(options.system)
        self._prompt_column, self._messages_column = _content_columns(options, source)
        self._id_column = _id_column(options, source)
        self._dropped = frozenset(options.drop_columns) | {_CUSTOM_ID} & {self._id_column}
        self._kept = None if options.keep_columns is None else frozenset(options.keep_columns) - self._dropped
        #: Columns that were named and not seen yet.
        self._awaited = {*(options.keep_columns or ()), *options.drop_columns}
        self._columns = source.columns
        if source.columns_typed:
            self._awaited -= set(source.columns)
            self.finish()
            source.choose(self._needed(), self._carried())

    def check_block(self, block: Block) -> CheckedRows:
        """The requests of these rows: all at once where nothing is the matter, else one by one."""
        return self._at_once(block) or CheckedRows.of([self.check(row) for row in block.rows()])

    def _at_once(self, block: Block) -> CheckedRows | None:
        """None where a row may have a problem, parameters of its own, or messages: ``check`` says."""
        names = block.names()
        if self._awaited:
            self._awaited -= names
        if not PARAMETERS.isdisjoint(names) or (ids := self._ids_at_once(block)) is None:
            return None
        if (prompts := self._prompts_at_once(block)) is None:
            return None
        count = len(block)
        messages: list[list[dict[str, Any]] | None] = [None] * count
        if self._as_chat:
            messages = [self._as_messages(prompt) for prompt in prompts]
        return CheckedRows(
            [block.file] * count,
            list(block.lines),
            ids,
            [None] * count if self._as_chat else list(prompts),
            messages,
            [{}] * count,
            [self._sampling.n] * count,
            [self._sampling.max_tokens] * count,
            self._own_at_once(block, names),
            [None] * count,
        )

    def _ids_at_once(self, block: Block) -> list[str | None] | None:
        if self._id_column is None:
            return [None] * len(block)
        ids = block.column(self._id_column)
        kinds = set(map(type, ids))
        if kinds == {int}:
            return list(map(str, ids))
        if kinds != {str} or not all(ids) or max(map(len, ids)) > _MAX_ID or not "".join(ids).isprintable():
            return None
        return ids

    def _prompts_at_once(self, block: Block) -> list[str] | None:
        if self._template is not None:
            try:
                prompts = [self._template.render(row.values) for row in block.rows()]
            except TemplateError:
                return None
        else:
            prompts = block.column(self._prompt_column) if self._prompt_column is not None else []
            if set(map(type, prompts)) != {str}:
                return None
        return prompts if all(prompts) and not any(map(str.isspace, prompts)) else None

    def _own_at_once(self, block: Block, names: set[str]) -> list[Own]:
        if isinstance(block, ArrowBlock):
            return block.own()  # which has but the columns that are kept
        kept = names if self._kept is None else names & self._kept
        if self._openai or kept - self._dropped != names:
            return [self._own(row) for row in block.rows()]
        return block.own()

    def check(self, row: SourceRow) -> CheckedRow:
        """The request of this row; its ``problem`` says why where there is none."""
        values = row.values
        custom_id = None
        if self._awaited:
            self._awaited -= values.keys()
        try:
            if self._id_column is not None:
                custom_id = self._read_id(values)
            params = {} if PARAMETERS.isdisjoint(values) else self._overrides.read(values)
            prompt, messages = self._content(values)
        except RowProblem as error:
            problem = Problem(row.file, row.line, error.reason, error.code, error.param)
            return error_row(problem, self._sampling, self._own(row), custom_id)
        return CheckedRow(
            row.file,
            row.line,
            custom_id,
            prompt,
            messages,
            params,
            params.get("n", self._sampling.n),
            params.get("max_tokens", self._sampling.max_tokens),
            self._own(row),
        )

    def finish(self) -> None:
        """To be called after the last row. Raises InputError for a named column that no row had."""
        if self._awaited:
            name = min(self._awaited)
            flag = "--drop-columns" if name in self._options.drop_columns else "--keep-columns"
            raise InputError(f"{flag}: {unknown_column(name, self._columns)}")

    def _needed(self) -> frozenset[str]:
        """The columns that requests are made of."""
        fields = self._template.fields if self._template is not None else ()
        named = (self._prompt_column, self._messages_column, self._id_column, *fields, *PARAMETERS)
        return frozenset(name for name in named if name in self._columns)

    def _carried(self) -> frozenset[str]:
        """The columns that go on to the results."""
        return (frozenset(self._columns) if self._kept is None else self._kept) - self._dropped

    def _own(self, row: SourceRow) -> Own:
        if row.arrow is not None:
            return row.arrow
        if self._openai:
            return {}
        values = row.values
        if self._kept is not None:
            return {name: value for name, value in values.items() if name in self._kept}
        if self._dropped:
            return {name: value for name, value in values.items() if name not in self._dropped}
        return values

    def _read_id(self, values: dict[str, Any]) -> str:
        column: str = self._id_column  # type: ignore[assignment]
        value = values.get(column)
        if type(value) is int:
            return str(value)
        if type(value) is not str or not value:
            state = "is missing" if value is None else "is empty" if value == "" else "is no string or integer"
            reason = f"the id {state} (column {column!r}; --id-column '' takes no ids)"
            raise RowProblem(reason, param=column)
        if len(value) > _MAX_ID:
            raise RowProblem(f"the id has {len(value)} characters, more than {_MAX_ID}", param=column)
        if not value.isprintable() and (found := _CONTROL.search(value)):
            raise RowProblem(f"the id {value!r} holds a control character (U+{ord(found[0]):04X})", param=column)
        return value

    def _content(self, values: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]] | None]:
        prompt = self._prompt(values)
        if not prompt and self._messages_column is not None:
            messages = values.get(self._messages_column)
            if messages is not None and messages != "":
                checked = check_messages(messages, self._messages_column)
                return None, with_system(checked, self._options.system)
        if type(prompt) is not str:
            raise self._without_prompt(prompt)
        if not prompt or prompt.isspace():
            raise RowProblem("the prompt is empty", "empty_prompt", self._prompt_column)
        return (None, self._as_messages(prompt)) if self._as_chat else (prompt, None)

    def _as_messages(self, prompt: str) -> list[dict[str, Any]]:
        return with_system([{"role": "user", "content": prompt}], self._options.system)

    def _prompt(self, values: dict[str, Any]) -> Any:
        if self._template is not None:
            try:
                return self._template.render(values)
            except TemplateError as error:
                raise RowProblem(str(error), "template_error", error.field) from error
        return None if self._prompt_column is None else values.get(self._prompt_column)

    def _without_prompt(self, value: Any) -> RowProblem:
        if value is not None:
            reason = f"the prompt (column {self._prompt_column!r}) is not a string: {as_json(value)[:60]}"
        else:
            wanted = [name for name in (self._prompt_column, self._messages_column) if name is not None]
            reason = f"has no prompt: {' or '.join(map(repr, wanted))} is missing or null"
        return RowProblem(reason, param=self._prompt_column or self._messages_column)


def _content_columns(options: RowOptions, source: Source) -> tuple[str | None, str | None]:
    """The column that holds prompts and the one that holds messages; a row has one of them."""
    flags = {
        "--template": options.template,
        "--prompt-column": options.prompt_column,
        "--messages-column": options.messages_column,
    }
    named = [flag for flag, value in flags.items() if value]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} exclude each other: give one")
    if source.openai and named:
        raise InputError(f"{source.name} holds OpenAI batch requests, which have prompts: leave out {named[0]}")
    if options.template is not None:
        if source.columns:
            options.template.check_fields(source.columns)
        return None, None
    if named:
        column = options.prompt_column or options.messages_column or ""
        if source.columns and column not in source.columns:
            raise InputError(f"{named[0]}: {unknown_column(column, source.columns)}")
        return options.prompt_column, options.messages_column
    if source.columns and not {_PROMPT, _MESSAGES} & set(source.columns):
        raise SourceError([_without_content(source)])
    return _PROMPT, _MESSAGES


def _without_content(source: Source) -> Problem:
    """The problem of a source none of whose first rows has a prompt."""
    columns = ", ".join(source.columns[:20])
    first = source.first_row()
    file, line = (first.file, first.line) if first else (source.name, None)
    if lacking := lacking_of_request(source.columns):
        return Problem(file, line, f"seems to be an OpenAI batch request, but lacks {lacking!r}")
    reason = "there is no column 'prompt' or 'messages': name one with --prompt-column, or give a --template"
    mark = next((mark for mark in ";\t|" if mark in columns), None)
    hint = f". Is the file separated by {mark!r} instead of commas?" if mark and len(source.columns) == 1 else ""
    near = did_you_mean(_PROMPT, source.columns) or did_you_mean(_MESSAGES, source.columns)
    return Problem(file, line, f"{reason}{near} (columns: {columns}){hint}")


def _id_column(options: RowOptions, source: Source) -> str | None:
    if options.id_column is not None:
        if options.id_column and source.columns and options.id_column not in source.columns:
            raise InputError(f"--id-column: {unknown_column(options.id_column, source.columns)}")
        return options.id_column or None
    return next((name for name in (_CUSTOM_ID, "id") if name in source.columns), None)
