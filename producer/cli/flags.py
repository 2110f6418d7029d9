"""The flags that several commands share: each group is a dataclass, and ``with_flags`` gives them to a command."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError

from jobs.errors import InputError
from jobs.settings import Settings
from jobs.spec import JobSpec, SamplingParams, check_job_id, now, split_model, validated
from producer.cli.completion import complete_format, complete_job, complete_source
from producer.overrides import allowed
from producer.rows import RowOptions
from producer.template import Template, check_text

_PROMPT = "Prompt"
_SAMPLING = "Sampling"
_JOB = "Job"
_PLACE = "Place"

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="A path, a glob, a folder, a URI, or - for stdin.", autocompletion=complete_source
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.", autocompletion=complete_job)]
JsonFlag = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@dataclass(frozen=True, slots=True)
class PlaceFlags:
    """Where the store and Redis are."""

    store: Annotated[
        str | None,
        typer.Option("--store", metavar="PLACE", help="The store; default PROMPTMILL_STORE.", rich_help_panel=_PLACE),
    ] = None
    redis_url: Annotated[
        str | None,
        typer.Option("--redis-url", metavar="URL", help="Default PROMPTMILL_REDIS_URL.", rich_help_panel=_PLACE),
    ] = None

    def settings(self) -> Settings:
        """Raises InputError."""
        return Settings.load(store=self.store, redis_url=self.redis_url)


@dataclass(frozen=True, slots=True)
class PromptFlags:
    """How a row becomes a prompt."""

    source_format: Annotated[
        str | None,
        typer.Option("--format", metavar="FORMAT", help="jsonl, json, csv, tsv, txt, parquet or arrow, also jsonl.gz "
                     "...; default: by extension.", rich_help_panel=_PROMPT, autocompletion=complete_format),
    ] = None  # fmt: skip
    template: Annotated[
        str | None,
        typer.Option(help="Text with {column}s, or @FILE; {{ and }} are braces.", rich_help_panel=_PROMPT),
    ] = None
    prompt_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Default: prompt.", rich_help_panel=_PROMPT)
    ] = None
    messages_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Default: messages.", rich_help_panel=_PROMPT)
    ] = None
    id_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Default: custom_id, else id, if there is one; '' for none.",
                     rich_help_panel=_PROMPT),
    ] = None  # fmt: skip
    system: Annotated[str | None, typer.Option(help="A system message before each row.", rich_help_panel=_PROMPT)] = (
        None
    )
    chat: Annotated[
        bool,
        typer.Option("--chat/--no-chat", help="Put prompts through the model's chat template.",
                     rich_help_panel=_PROMPT),
    ] = False  # fmt: skip
    keep_columns: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Carry only these columns to the results.", rich_help_panel=_PROMPT),
    ] = None
    drop_columns: Annotated[
        str | None, typer.Option(metavar="A,B", help="Carry all columns but these.", rich_help_panel=_PROMPT)
    ] = None

    def template_text(self) -> str | None:
        """The template itself, read from its file where one is named. Raises InputError."""
        return Template.load(self.template).text if self.template is not None else None

    def row_options(self, sampling: SamplingParams) -> RowOptions:
        """Raises InputError."""
        if self.keep_columns is not None and self.drop_columns is not None:
            raise InputError("--keep-columns and --drop-columns exclude each other: give one of them")
        check_text("--system", self.system or "")
        return RowOptions(
            template=Template.load(self.template) if self.template is not None else None,
            prompt_column=self.prompt_column,
            messages_column=self.messages_column,
            id_column=self.id_column,
            system=self.system,
            chat=self.chat,
            sampling=sampling,
            keep_columns=_names(self.keep_columns) if self.keep_columns is not None else None,
            drop_columns=_names(self.drop_columns or ""),
        )


@dataclass(frozen=True, slots=True)
class SamplingFlags:
    """How the text is chosen. Ranges are checked by SamplingParams, in one place."""

    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most.", rich_help_panel=_SAMPLING)] = 256
    temperature: Annotated[float, typer.Option(help="0 is greedy.", rich_help_panel=_SAMPLING)] = 0.0
    top_p: Annotated[float, typer.Option(help="Nucleus sampling.", rich_help_panel=_SAMPLING)] = 1.0
    top_k: Annotated[int, typer.Option(help="0 is off.", rich_help_panel=_SAMPLING)] = 0
    min_p: Annotated[float, typer.Option(help="0 is off.", rich_help_panel=_SAMPLING)] = 0.0
    repetition_penalty: Annotated[float, typer.Option(help="1 is off.", rich_help_panel=_SAMPLING)] = 1.0
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text; repeatable; \\n is a newline.",
                                       rich_help_panel=_SAMPLING)
    ] = None  # fmt: skip
    stop_token_id: Annotated[
        list[int] | None, typer.Option(help="End at this token; repeatable.", rich_help_panel=_SAMPLING)
    ] = None
    seed: Annotated[
        int | None, typer.Option(help="Default: a hash of job, row and sample.", rich_help_panel=_SAMPLING)
    ] = None
    n: Annotated[int, typer.Option("--n", help="Samples of each prompt.", rich_help_panel=_SAMPLING)] = 1
    logprobs: Annotated[bool, typer.Option("--logprobs", help="Fill mean_logprob.", rich_help_panel=_SAMPLING)] = False

    def params(self) -> SamplingParams:
        """Raises InputError, naming the flag and what it allows."""
        given = dataclasses.asdict(self)
        given["stop"] = tuple(text.replace("\\n", "\n").replace("\\t", "\t") for text in self.stop or ())
        given["stop_token_ids"] = tuple(given.pop("stop_token_id") or ())
        try:
            return SamplingParams(**given)
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0])
            flag = "--stop-token-id" if name == "stop_token_ids" else "--" + name.replace("_", "-")
            raise InputError(f"{flag} {first['input']!r}: use {allowed(name)}") from error


@dataclass(frozen=True, slots=True)
class JobFlags:
    """How a job is run."""

    job_id: Annotated[
        str | None, typer.Option(help="Default: a hash of the rows and parameters.", rich_help_panel=_JOB)
    ] = None
    priority: Annotated[int, typer.Option(help="-5 to 5; each step doubles its share.", rich_help_panel=_JOB)] = 0
    deadline: Annotated[
        str | None, typer.Option(metavar="6h", help="90s, 30m, 6h, 2d from now, or a time.", rich_help_panel=_JOB)
    ] = None
    batch_size: Annotated[int, typer.Option(help="Rows in a batch.", rich_help_panel=_JOB)] = 256
    max_error_rate: Annotated[
        float, typer.Option(help="Pause when more of 200 rows or more have failed.", rich_help_panel=_JOB)
    ] = 0.5
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Bad rows become error rows of the result.", rich_help_panel=_JOB)
    ] = False
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Repeatable.", rich_help_panel=_JOB)] = None
    again: Annotated[
        bool, typer.Option("--again", help="Run work anew that has already ended.", rich_help_panel=_JOB)
    ] = False

    def spec(self, model: str, sampling: SamplingParams, prompts: PromptFlags) -> JobSpec:
        """Raises InputError."""
        if self.job_id is not None:
            check_job_id(self.job_id)
        given = {
            "model": split_model(model)[0],
            "sampling": sampling,
            "template": prompts.template_text(),
            "chat": prompts.chat,
            "system": prompts.system,
            "priority": self.priority,
            "labels": _labels(self.label or []),
            "deadline": parse_deadline(self.deadline) if self.deadline is not None else None,
            "batch_size": self.batch_size,
            "max_error_rate": self.max_error_rate,
        }
        return validated(JobSpec, given)


_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_deadline(text: str) -> datetime:
    """``90s``, ``30m``, ``6h``, ``2d`` from now, or an ISO 8601 time with its zone. Raises InputError."""
    when = _time("--deadline", text, 1)
    if when <= now():
        raise InputError(f"--deadline {text!r} has already passed")
    return when


def parse_since(text: str) -> datetime:
    """``90s``, ``30m``, ``6h``, ``2d`` ago, or an ISO 8601 time with its zone. Raises InputError."""
    return _time("--since", text, -1)


def _time(flag: str, text: str, direction: int) -> datetime:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    try:
        if match:
            return now() + direction * timedelta(**{_UNITS[match[2]]: float(match[1])})
        when = datetime.fromisoformat(text.strip())
    except (ValueError, OverflowError):
        raise InputError(f"{flag} {text!r}: use 90s, 30m, 6h, 2d or a time like 2030-01-31T18:00:00Z") from None
    if when.tzinfo is None:
        raise InputError(f"{flag} {text!r}: the time lacks its zone; add Z or +01:00")
    return when


#: Characters of a label's key and of its value, and labels: they are shown in tables.
_LABEL, _LABELS = 200, 64


def parse_label(text: str) -> tuple[str, str]:
    """Raises InputError."""
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise InputError(f"--label {text!r}: use KEY=VALUE")
    if max(len(key), len(value)) > _LABEL or not text.isprintable():
        raise InputError(f"--label {text!r}: use at most {_LABEL} characters for each, none a control character")
    return key, value


def _labels(texts: list[str]) -> dict[str, str]:
    """Raises InputError."""
    labels: dict[str, str] = {}
    for text in texts:
        key, value = parse_label(text)
        if labels.get(key, value) != value:
            raise InputError(f"--label {text!r}: the label {key!r} is given twice")
        labels[key] = value
    if len(labels) > _LABELS:
        raise InputError(f"--label: {len(labels)} labels are more than {_LABELS}")
    return labels


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def with_flags(**groups: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the flags of dataclasses: ``@with_flags(prompts=PromptFlags)`` calls it with ``prompts=``.

    typer reads a command's signature; this one is the command's own parameters and every field of the groups.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in own.items()
            if name not in groups
        ]
        for group in groups.values():
            hints = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(
                    item.name, inspect.Parameter.KEYWORD_ONLY, default=item.default, annotation=hints[item.name]
                )
                for item in dataclasses.fields(group)
            ]

        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            built = {
                name: group(**{item.name: values.pop(item.name) for item in dataclasses.fields(group)})
                for name, group in groups.items()
            }
            return command(**values, **built)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        del wrapper.__wrapped__
        return wrapper

    return decorate
