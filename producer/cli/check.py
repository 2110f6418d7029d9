"""``check``: everything that can be said of a source before it is submitted."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

from jobs.console import json_out
from jobs.errors import InputError
from producer.check import check
from producer.cli.check_text import report_text
from producer.cli.flags import JsonFlag, PlaceFlags, PromptFlags, SamplingFlags, SourceArgument, with_flags
from producer.cli.text import problems_text, say
from producer.forecast import prepare
from producer.sources import Source, open_source

_FORECAST = "Forecast"
_SHOWN_PROBLEMS = 20

ModelFlag = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[=PATH_OR_ID]",
        help="Ask its live workers how fast they are and what they take; count tokens with its tokenizer.",
        rich_help_panel=_FORECAST,
    ),
]
TokenizerFlag = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_ID", help="Count tokens with a folder's tokenizer.json, or a model's of the hub.",
        rich_help_panel=_FORECAST,
    ),
]  # fmt: skip
ContextFlag = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Tokens of prompt and output together; default: as workers or config.json say.",
        rich_help_panel=_FORECAST,
    ),
]  # fmt: skip
ExactFlag = Annotated[
    bool,
    typer.Option("--exact-tokens", help="Count the tokens of all rows, not of a sample.", rich_help_panel=_FORECAST),
]


@with_flags(prompts=PromptFlags, sampling=SamplingFlags, place=PlaceFlags)
def check_command(
    source: SourceArgument,
    prompts: PromptFlags,
    sampling: SamplingFlags,
    place: PlaceFlags,
    show: Annotated[int, typer.Option(min=0, help="Print this many rendered prompts.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a batch.")] = 256,
    skip_invalid: Annotated[bool, typer.Option("--skip-invalid", help="Bad rows are no reason to fail.")] = False,
    model: ModelFlag = None,
    tokenizer: TokenizerFlag = None,
    context: ContextFlag = None,
    exact_tokens: ExactFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Validate every row of SOURCE; nothing is enqueued.

    With --model: how many tokens it has, how long it will take, and which rows are too long.
    """
    options = prompts.row_options(sampling.params())
    opened = open_named(source, prompts)
    forecast = prepare(place.settings(), model, tokenizer, context, every_token=exact_tokens)
    started = time.perf_counter()
    report = check(
        opened,
        options,
        batch_size=batch_size,
        show=show,
        skip_invalid=skip_invalid,
        limit_problems=sys.maxsize if as_json else _SHOWN_PROBLEMS,
        meter=forecast.meter,
    )
    forecast.conclude(report.tokens, report.result_rows)
    report.notes = [*report.notes, *forecast.notes]
    if as_json:
        json_out({**report.to_json(), **forecast.to_json()})
    else:
        sys.stdout.write(report_text(report, forecast, time.perf_counter() - started))
    if not report.ok:
        if not as_json:
            say(problems_text(report.problems, report.total_problems))
        raise typer.Exit(2)


def open_named(source: str, prompts: PromptFlags) -> Source:
    """The source that a command line names. Raises InputError."""
    if not source:
        raise InputError("SOURCE is empty: name a file or a glob, or - for stdin")
    return open_source(source, format=prompts.source_format)
