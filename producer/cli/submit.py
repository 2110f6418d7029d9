"""``submit``: a source becomes a job."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Annotated

import typer

from jobs.console import EPILOG_NEWLINES, Interrupted, json_out
from jobs.errors import SourceError, UnavailableError
from jobs.layout import JOBS, results_prefix
from jobs.recover import other_stores
from jobs.spec import JobSpec, now
from producer.cli.check import check_command, open_named
from producer.cli.check_text import over_sentences
from producer.cli.flags import (
    JobFlags,
    JsonFlag,
    PlaceFlags,
    PromptFlags,
    SamplingFlags,
    SourceArgument,
    with_flags,
)
from producer.cli.text import problems_text, say, staging
from producer.cli.waiting import finish, wait_for
from producer.connection import Connection
from producer.fleet import Fleet
from producer.forecast import for_submit
from producer.rows import RowChecker
from producer.sources import Source
from producer.submit import Submitted
from producer.submit import submit as submit_source

_UNTOUCHED = "nothing was submitted; run the same command again"
_UNCLEAR = "the job may have been submitted; the same command goes on with it, or submits it"
#: How far the clock of a store may be behind this machine's.
_CLOCKS = timedelta(seconds=5)

_CHECK_EXAMPLES = EPILOG_NEWLINES.join(
    f"Example: promptmill check {arguments}"
    for arguments in (
        "products.csv --template 'Write about {title}' --show 2",
        "products.csv --template @prompt.txt --model copy=./my-model --max-tokens 80",
        "prompts.jsonl --tokenizer ./my-model --json",
    )
)
_EXAMPLE = "Example: promptmill {} products.csv --template 'Write about {{title}}' {}"

ModelFlag = Annotated[str, typer.Option("--model", metavar="NAME", help="The name that workers serve the model by.")]


def add_commands(app: typer.Typer) -> None:
    app.command("check", epilog=_CHECK_EXAMPLES)(check_command)
    app.command("submit", epilog=_EXAMPLE.format("submit", "--model copy --max-tokens 80"))(submit_command)


@with_flags(prompts=PromptFlags, sampling=SamplingFlags, job=JobFlags, place=PlaceFlags)
def submit_command(
    source: SourceArgument,
    model: ModelFlag,
    prompts: PromptFlags,
    sampling: SamplingFlags,
    job: JobFlags,
    place: PlaceFlags,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the job until it has ended.")] = False,
    allow_failed: Annotated[bool, typer.Option("--allow-failed", help="Failed rows are no failure.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check SOURCE, stage it, and enqueue it as a job; prints the job's id."""
    spec = job.spec(model, sampling.params(), prompts)
    with _interrupts_are_harmless():
        opened = open_rows(source, spec, prompts)
        connection = Connection(place.settings(), create=True)
    try:
        submitted = start_job(connection, opened, spec, prompts, job)
        _tell(connection, submitted)
        if as_json and not wait:
            json_out(submitted.to_json(connection.store))
        elif not as_json:
            sys.stdout.write(submitted.job.id + "\n")
            sys.stdout.flush()
        if wait:
            status = wait_for(connection, submitted.job.id)
            if as_json:
                json_out(status.to_json())
            finish(status, allow_failed)
    finally:
        connection.close()


def open_rows(source: str, spec: JobSpec, prompts: PromptFlags) -> Source:
    """The source, if it is there and has the columns that the flags name: known before anything is started.

    Raises InputError.
    """
    opened = open_named(source, prompts)
    RowChecker(prompts.row_options(spec.sampling), opened)
    return opened


def start_job(connection: Connection, source: Source, spec: JobSpec, prompts: PromptFlags, job: JobFlags) -> Submitted:
    """Submit ``source`` with the flags of a command line; bad rows, skipped or not, are told on stderr.

    Raises Interrupted, which says whether anything was submitted.
    """
    started = now()
    try:
        meter = for_submit(Fleet.seen(connection.ledger, spec.model))
        with staging() as progress:
            submitted = submit_source(
                connection,
                source,
                prompts.row_options(spec.sampling),
                spec,
                job_id=job.job_id,
                skip_invalid=job.skip_invalid,
                again=job.again,
                progress=progress,
                meter=meter,
            )
    except SourceError as error:
        say(problems_text(error.problems, error.total))
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise Interrupted(_UNCLEAR if _accepted_since(connection, started) else _UNTOUCHED) from None
    report = submitted.report
    for note in report.notes:
        say(f"note: {note}")
    if meter is not None and meter.context is not None:
        for sentence, _ in over_sentences(report.tokens, meter.context):
            say(f"{sentence}; `promptmill check --model {spec.model}` says which")
    if report.problems:
        say(problems_text(report.problems, report.total_problems))
        say(f"{report.invalid:,} bad rows go on as error rows (--skip-invalid)")
    return submitted


@contextmanager
def _interrupts_are_harmless() -> Iterator[None]:
    """For what comes before the first row is staged."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(_UNTOUCHED) from None


def _accepted_since(connection: Connection, started: datetime) -> bool:
    """Whether some job was accepted since: perhaps the one that was interrupted. True where nobody can tell."""
    try:
        return any(item.modified >= started - _CLOCKS for item in connection.store.list(JOBS))
    except UnavailableError:
        return True


def _tell(connection: Connection, submitted: Submitted) -> None:
    """What people should know about a job that was just submitted."""
    job = submitted.job
    if submitted.ended:
        say(f"This work has already ended: {connection.store.locate(results_prefix(job.id))}; --again runs it anew.")
        return
    if submitted.existed:
        say(f"This work was submitted before and goes on; `promptmill watch {job.id}` shows it.")
        return
    serving = [worker for worker in connection.ledger.workers() if worker.model == job.spec.model]
    if not serving:
        others = other_stores(connection.ledger, connection.store)
        say(
            f"warning: no live worker serves {job.spec.model!r}; the job waits for "
            f"`promptmill-worker start --model {job.spec.model}=PATH_OR_ID`"
            + (f"; those of other stores do not see it, and this Redis also serves {others}" if others else "")
        )
    elif not any(job.version in worker.reads for worker in serving):
        releases = ", ".join(sorted({worker.version for worker in serving}))
        say(
            f"warning: the live workers of {job.spec.model!r} (promptmill {releases}) do not read jobs of this "
            "version; the job waits until one is upgraded"
        )
