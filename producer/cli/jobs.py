"""``status``, ``list``, ``watch``, ``cancel``, ``pause``, ``resume``, ``priority``, ``recover``: jobs in the store."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from jobs.console import json_out
from jobs.errors import ForeignStoreError, RedisUnavailableError, UnknownJobError
from jobs.records import job_ids, read_job
from jobs.recover import recover_all, recover_job
from jobs.spec import Status
from jobs.status import JobStatus
from producer.cli.completion import complete_job
from producer.cli.flags import JobArgument, JsonFlag, PlaceFlags, parse_label, parse_since, with_flags
from producer.cli.text import labels_text, print_table, say, status_text
from producer.cli.waiting import finish, wait_for
from producer.connection import Connection
from producer.near import did_you_mean
from producer.status import chosen, job_status, list_jobs, the_live_job
from producer.tend import cancel_job, pause_job, resume_job, set_priority

_EXAMPLE = "Example: promptmill {}"


def add_commands(app: typer.Typer) -> None:
    for name, command, example in (
        ("status", status_command, "status job-0123456789abcdef --json"),
        ("list", list_command, "list --status in_progress --label team=shop"),
        ("watch", watch_command, "watch job-0123456789abcdef"),
        ("cancel", cancel_command, "cancel job-0123456789abcdef"),
        ("pause", pause_command, "pause job-0123456789abcdef"),
        ("resume", resume_command, "resume job-0123456789abcdef"),
        ("priority", priority_command, "priority job-0123456789abcdef 2"),
        ("recover", recover_command, "recover"),
    ):
        # A negative priority is no option.
        settings = {"ignore_unknown_options": True} if name == "priority" else None
        app.command(name, epilog=_EXAMPLE.format(example), context_settings=settings)(command)


@contextmanager
def opened(place: PlaceFlags, job: str | None = None) -> Iterator[Connection]:
    """A connection; an unknown ``job`` is told apart from a look at the wrong store."""
    connection = Connection(place.settings())
    try:
        if job is not None:
            check_known(connection, job)
        yield connection
    finally:
        connection.close()


def check_known(connection: Connection, job: str) -> None:
    """Raises UnknownJobError, or ForeignStoreError where this Redis works for other stores alone."""
    try:
        read_job(connection.store, job)
    except UnknownJobError as error:
        others: set[str] = set()
        with suppress(RedisUnavailableError):
            others = {uri for store, uri in connection.ledger.stores().items() if store != connection.store.id}
        if others and next(job_ids(connection.store), None) is None:
            raise ForeignStoreError(
                f"no job {job!r}: the store {connection.store.uri} has no jobs, but this Redis also serves "
                f"{', '.join(sorted(others))}; set PROMPTMILL_STORE (or --store) to the one you mean"
            ) from None
        if near := did_you_mean(job, job_ids(connection.store)):
            raise UnknownJobError(f"no job {job!r} in the store {connection.store.uri}{near}") from error
        raise


@with_flags(place=PlaceFlags)
def status_command(job: JobArgument, place: PlaceFlags, as_json: JsonFlag = False) -> None:
    """Counts, rate, ETA and errors of a job."""
    with opened(place, job) as connection:
        _print(job_status(connection, job), as_json)


@with_flags(place=PlaceFlags)
def list_command(
    place: PlaceFlags,
    status: Annotated[
        list[Status] | None, typer.Option(metavar="STATUS", help=f"{', '.join(Status)}; repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="Of this model.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="K=V", help="Repeatable: with all of these.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="2d", help="Created 6h or 2d ago at most, or since a time.")
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="The newest of these only.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """The jobs of the store, newest first."""
    labels = dict(parse_label(text) for text in label or ())
    start = parse_since(since) if since is not None else None
    with opened(place) as connection:
        every, untold = list_jobs(connection)
    found = chosen(every, statuses=status or (), model=model, labels=labels, since=start)[:limit]
    if untold:
        say(f"{len(untold)} jobs cannot be shown: {', '.join(untold[:10])}")
    if as_json:
        json_out([status.to_json() for status in found])
        return
    if every and not found:
        say(f"none of the {len(every):,} jobs is such a one")
    elif not found:
        say("no jobs yet; `promptmill submit SOURCE --model NAME` makes one")
    else:
        print_table(_table(found))


def _table(jobs: list[JobStatus]) -> Table:
    """One line for each job; the column of labels only where a job has one."""
    labelled = any(job.labels for job in jobs)
    table = Table("job", "status", "model", box=None, pad_edge=False)
    for name in ("rows", "failed"):
        table.add_column(name, justify="right")
    table.add_column("created (UTC)")
    if labelled:
        table.add_column("labels")
    for job in jobs:
        rows = f"{job.rows.ended:,}/{job.rows.total:,}"
        created = f"{job.created_at:%Y-%m-%d %H:%M:%S}"
        row = [job.id, job.status.value, job.model, rows, f"{job.rows.failed:,}", created]
        table.add_row(*(escape(text) for text in [*row, *([labels_text(job.labels)] if labelled else [])]))
    return table


@with_flags(place=PlaceFlags)
def watch_command(
    place: PlaceFlags,
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="Default: the one job that lives.", autocompletion=complete_job),
    ] = None,
    allow_failed: Annotated[bool, typer.Option("--allow-failed", help="Failed rows are no failure.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a job's progress until it has ended. Ctrl-C leaves it running."""
    with opened(place, job) as connection:
        status = wait_for(connection, job or the_live_job(connection))
        if as_json:
            json_out(status.to_json())
        elif status.results:
            sys.stdout.write(status.results + "\n")
    finish(status, allow_failed)


@with_flags(place=PlaceFlags)
def cancel_command(job: JobArgument, place: PlaceFlags, as_json: JsonFlag = False) -> None:
    """Stop a job; rows that are finished stay in its results."""
    with opened(place, job) as connection:
        _print(cancel_job(connection, job), as_json)


@with_flags(place=PlaceFlags)
def pause_command(job: JobArgument, place: PlaceFlags, as_json: JsonFlag = False) -> None:
    """Start no more batches of a job; those that run are finished."""
    with opened(place, job) as connection:
        _print(pause_job(connection, job), as_json)


@with_flags(place=PlaceFlags)
def resume_command(job: JobArgument, place: PlaceFlags, as_json: JsonFlag = False) -> None:
    """Go on with a paused job."""
    with opened(place, job) as connection:
        _print(resume_job(connection, job), as_json)


@with_flags(place=PlaceFlags)
def priority_command(
    job: JobArgument,
    priority: Annotated[int, typer.Argument(metavar="N", help="-5 to 5; each step doubles the job's share.")],
    place: PlaceFlags,
    as_json: JsonFlag = False,
) -> None:
    """Give a job a larger or smaller share of the workers."""
    with opened(place, job) as connection:
        _print(set_priority(connection, job, priority), as_json)


@with_flags(place=PlaceFlags)
def recover_command(
    place: PlaceFlags,
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="Default: all jobs.", autocompletion=complete_job)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rebuild the state in Redis from the store; what is there already is kept."""
    with opened(place) as connection:
        if job is not None:
            restored = [job] if recover_job(connection.store, connection.ledger, job) else []
            damaged: list[str] = []
        else:
            found = recover_all(connection.store, connection.ledger)
            restored, damaged = found.restored, found.damaged
        for model in {read_job(connection.store, name).spec.model for name in restored}:
            connection.send_first_permits(model)
    if as_json:
        json_out({"restored": restored, "damaged": damaged})
        return
    say(f"{len(restored)} jobs live; pauses and changed priorities live in Redis alone and are lost with it")
    for name in damaged:
        say(f"job {name} is left alone: its record cannot be read")


def _print(status: JobStatus, as_json: bool) -> None:
    if as_json:
        json_out(status.to_json())
    else:
        sys.stdout.write(status_text(status))
