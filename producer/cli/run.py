"""``run``: a server, workers, a job and its results, all on this machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from jobs.console import json_out
from jobs.layout import results_prefix
from jobs.recover import recover_job
from jobs.settings import Settings
from jobs.spec import Status
from jobs.status import JobStatus
from producer.cli.flags import JobFlags, JsonFlag, PlaceFlags, PromptFlags, SamplingFlags, SourceArgument, with_flags
from producer.cli.results import check_folder, target_file
from producer.cli.submit import open_rows, start_job
from producer.cli.text import HEAD_COLUMNS, head_text, say
from producer.cli.waiting import finish, wait_for
from producer.connection import Connection
from producer.export import export, format_of
from producer.local import LocalWorkers, check_model
from producer.results import head, read_results
from producer.server import EmbeddedServer
from producer.status import job_status
from producer.submit import Submitted

_MACHINE = "This machine"


@dataclass(frozen=True, slots=True)
class RunFlags:
    """How this machine runs the job, and where its results go besides the store."""

    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.", rich_help_panel=_MACHINE)] = 1
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...", rich_help_panel=_MACHINE)] = "auto"
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.", rich_help_panel=_MACHINE)] = "auto"
    out: Annotated[
        str | None,
        typer.Option(metavar="FILE_OR_DIR", help="Write the results here too; format by extension, parquet in a "
                     "folder.", rich_help_panel=_MACHINE),
    ] = None  # fmt: skip
    allow_failed: Annotated[bool, typer.Option("--allow-failed", help="Failed rows are no failure.")] = False
    as_json: JsonFlag = False


def add_commands(app: typer.Typer) -> None:
    app.command(
        "run", epilog="Example: promptmill run products.csv --template 'Write about {title}' --model gpt2 --workers 2"
    )(run_command)


@with_flags(prompts=PromptFlags, sampling=SamplingFlags, job=JobFlags, place=PlaceFlags, flags=RunFlags)
def run_command(
    source: SourceArgument,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME[=PATH_OR_ID]", help="A folder, a hub id, or a name for either.")
    ],
    prompts: PromptFlags,
    sampling: SamplingFlags,
    job: JobFlags,
    place: PlaceFlags,
    flags: RunFlags,
) -> None:
    """All of it on this machine: Redis server, workers, job, results. Interrupted and run again, it goes on."""
    spec = job.spec(model, sampling.params(), prompts)
    opened = open_rows(source, spec, prompts)
    if flags.out is not None:
        _check_out(flags.out)
    check_model(model)
    settings = place.settings()
    store = Connection(settings, create=True).store
    home = (store.root or Path.home() / ".cache" / "promptmill" / store.id) / "_local"

    def run_at(redis_url: str) -> JobStatus:
        connection = Connection(settings.model_copy(update={"redis_url": redis_url}))
        local = LocalWorkers(model, flags.workers, redis_url, store, home, _worker_arguments(flags))
        try:
            connection.ledger.require_worker()  # before anything is accepted
            with local:
                submitted = start_job(connection, opened, spec, prompts, job)
                _resume(connection, submitted)
                return wait_for(connection, submitted.job.id, local.supervise, resume="the same command goes on")
        finally:
            connection.close()

    if settings.redis_url is not None:
        status = run_at(settings.redis_url)
    else:
        with EmbeddedServer(store.root or home, home) as server:
            status = run_at(server.url)
    if status.results is not None:
        _report(settings, status, flags)
    finish(status, flags.allow_failed)


def _resume(connection: Connection, submitted: Submitted) -> None:
    """The same command goes on where it was, also where the job had paused itself or failed."""
    if submitted.existed and not submitted.ended:
        status = job_status(connection, submitted.job.id)
        if status.status is Status.PAUSED:
            say(f"job {status.id} was paused{f' ({status.reason})' if status.reason else ''} and goes on")
            connection.ledger.resume(status.id)
        elif status.status is Status.FAILED:
            say(f"job {status.id} had failed ({status.reason}) and is tried again")
            recover_job(connection.store, connection.ledger, status.id, revive=True)
            connection.send_first_permits(status.model)


def _as_folder(out: str) -> str:
    """``--out`` with the slash of a folder where it has no extension."""
    return out if Path(out).suffix or out.endswith("/") else f"{out}/"


def _check_out(out: str) -> None:
    """Find before the work what would spoil its end. Raises InputError."""
    path = Path(out)
    if path.is_dir() or _as_folder(out).endswith("/"):
        return
    format_of(out, None)
    check_folder(f"--out {out}", path)


def _worker_arguments(flags: RunFlags) -> tuple[str, ...]:
    return ("--device", flags.device, "--dtype", flags.dtype)


def _report(settings: Settings, status: JobStatus, flags: RunFlags) -> None:
    """Where the results are, and the first of them."""
    connection = Connection(settings)
    store = connection.store
    if flags.out is not None:
        target, form = target_file(_as_folder(flags.out), status.id, None)
        say(f"{export(store, status.id, str(target), form).rows:,} rows written to {target}")
    if flags.as_json:
        json_out(status.to_json())
        return
    say("")
    sys.stdout.write(head_text(head(read_results(store, status.id, columns=HEAD_COLUMNS), 3)))
    sys.stdout.write(f"\n{status.rows.completed:,} of {status.rows.total:,} rows completed. The dataset:\n")
    sys.stdout.write(f"{store.locate(results_prefix(status.id))}\n")
