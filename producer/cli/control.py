"""``retry`` and ``delete``: what comes after a job."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from jobs.console import EPILOG_NEWLINES, Interrupted, json_out
from jobs.deletion import delete_job
from jobs.errors import DamagedFileError, InputError, RedisUnavailableError, UnknownJobError
from jobs.records import is_deleted
from producer.cli.flags import JobArgument, JsonFlag, PlaceFlags, parse_deadline, with_flags
from producer.cli.jobs import check_known, opened
from producer.cli.text import say, staging
from producer.cli.waiting import finish, wait_for
from producer.connection import Connection
from producer.display import codes_text
from producer.retry import Retried
from producer.retry import retry as retry_job
from producer.status import job_status

_RETRY_EXAMPLES = (
    "Example: promptmill retry job-0123456789abcdef --wait",
    "After a cancel: promptmill retry job-0123456789abcdef --cancelled",
)


def add_commands(app: typer.Typer) -> None:
    app.command("retry", epilog=EPILOG_NEWLINES.join(_RETRY_EXAMPLES))(retry_command)
    app.command("delete", epilog="Example: promptmill delete job-0123456789abcdef --yes")(delete_command)


@with_flags(place=PlaceFlags)
def retry_command(
    job: JobArgument,
    place: PlaceFlags,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="Cancelled rows too.")] = False,
    expired: Annotated[bool, typer.Option("--expired", help="Expired rows too.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Anew, where the same retry has already ended.")] = False,
    deadline: Annotated[
        str | None, typer.Option(metavar="6h", help="90s, 30m, 6h, 2d from now, or a time; JOB's is not kept.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch the new job until it has ended.")] = False,
    allow_failed: Annotated[bool, typer.Option("--allow-failed", help="Failed rows are no failure.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Generate the failed rows of JOB again, in a new job whose dataset holds all rows of JOB; prints its id.

    The other rows are carried over as they are. JOB stays as it is. Where nothing can be retried, the id is JOB's.
    """
    when = parse_deadline(deadline) if deadline is not None else None
    with opened(place, job) as connection:
        try:
            with staging() as progress:
                done = retry_job(
                    connection, job, cancelled=cancelled, expired=expired, again=again, deadline=when, progress=progress
                )
        except KeyboardInterrupt:
            raise Interrupted("run the same command again: it goes on with the retry, or makes it") from None
        _tell(done)
        name = done.job.id if done.job else job
        if as_json and not wait:
            json_out(done.to_json(connection.store))
        elif not as_json:
            sys.stdout.write(name + "\n")
            sys.stdout.flush()
        if wait:
            status = wait_for(connection, name)
            if as_json:
                json_out(status.to_json())
            finish(status, allow_failed)


def _tell(done: Retried) -> None:
    """What people should know about a retry."""
    if done.refused:
        say(f"{sum(done.refused.values()):,} failed rows cannot be generated again: {codes_text(done.refused)}")
    for status, rows in done.left.items():
        say(f"{rows:,} {status} rows stay as they are; --{status} retries them too")
    if done.job is None:
        say(f"nothing to retry in {done.parent.id}")
    elif done.existed and done.ended:
        say(
            f"this retry has already ended as {done.job.id}; `promptmill retry {done.job.id}` retries what failed "
            "there, --again does the same work anew"
        )
    elif done.existed:
        say(f"this retry was made before and goes on; `promptmill watch {done.job.id}` shows it")
    elif done.job.retry:
        say(f"{done.job.retry.retried:,} rows to generate again, {done.job.retry.carried.rows:,} carried over")


@with_flags(place=PlaceFlags)
def delete_command(
    job: JobArgument,
    place: PlaceFlags,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove a job for good: its results, its files, its state. One that runs is stopped. Its id is not used again."""
    with opened(place) as connection:
        known = _known(connection, job)
        if not yes:
            _ask(connection, job, known)
        try:
            files = delete_job(connection.store, job, _forgetting(connection))
        except KeyboardInterrupt:
            raise Interrupted("run the same command again: it removes what is left") from None
    if as_json:
        json_out({"id": job, "deleted": True, "files": files, "store": connection.store.uri})
    else:
        say(f"job {job} is deleted: {files:,} files")


def _known(connection: Connection, job: str) -> str:
    """What the job is, in a few words. Raises UnknownJobError for one that there never was."""
    try:
        check_known(connection, job)
        status = job_status(connection, job)
    except UnknownJobError:
        if not is_deleted(connection.store, job):
            raise
        return "deleted before, perhaps not to the end"
    except (DamagedFileError, RedisUnavailableError) as error:
        return f"its state is unknown: {error}"
    return f"{status.status}, {status.rows.total:,} rows"


def _ask(connection: Connection, job: str, known: str) -> None:
    """Go on only if a person says so. Raises InputError where there is none to ask."""
    if not sys.stdin.isatty():
        raise InputError(f"delete {job} removes it for good: give --yes where nobody can be asked")
    try:
        sure = typer.confirm(f"Delete job {job} ({known}) with its results from {connection.store.uri}?", err=True)
    except typer.Abort:
        sure = False
    if not sure:
        say("nothing was deleted")
        raise typer.Exit(1)


def _forgetting(connection: Connection) -> Callable[[str], None]:
    """Takes a job out of Redis. Where that is away, whoever next meets the job there finds its record gone."""
    away = False

    def forget(job: str) -> None:
        nonlocal away
        if away:
            return
        try:
            connection.ledger.forget(job)
        except RedisUnavailableError as error:
            away = True
            say(f"note: {error}; workers that hear of {job} from it will find that it is deleted")

    return forget
