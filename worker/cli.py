"""``promptmill-worker``: serve a model, or check that this machine could."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Literal, NoReturn

import typer

from jobs import __version__
from jobs.console import EPILOG_NEWLINES, EXIT_INTERRUPTED, json_out, run_app, service, setup_logging
from jobs.errors import InputError
from jobs.settings import Settings
from jobs.spec import split_model
from jobs.telemetry.logs import sign_lines
from jobs.telemetry.tracing import traced
from worker.allowed import check_allowed
from worker.naming import worker_name

app = typer.Typer(
    name="promptmill-worker",
    help="Serve a model to the jobs of a Promptmill store.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"promptmill-worker {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


Model = Annotated[
    str,
    typer.Option("--model", metavar="NAME[=PATH_OR_ID]", help="The name that jobs ask for, and where its weights are."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[str, typer.Option(help="auto (float32 on cpu, bfloat16 on cuda), float32, bfloat16, float16.")]
Engine = Annotated[
    Literal["auto", "inflight", "padded"],
    typer.Option(help="inflight: rows enter and leave at any step; padded: static batches; auto: inflight if it can."),
]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the model ships.")]


_START_EXAMPLES = EPILOG_NEWLINES.join([
    "Examples:",
    "promptmill-worker start --model copy=./my-model --concurrency 4",
    "promptmill-worker start --model copy=./my-model --devices auto",
])  # fmt: skip


@app.command(epilog=_START_EXAMPLES)
def start(
    context: typer.Context,
    model: Model,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Batches in hand at once.")] = 4,
    device: Device = "auto",
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="0,1,...|auto|cpu,cpu",
            help="One process for each of these devices, kept alive: GPUs by number or id, auto (all GPUs, or the CPU "
            "where there is none), cpu. SIGHUP replaces them one after another.",
        ),
    ] = None,
    dtype: Dtype = "auto",
    max_batch_tokens: Annotated[
        int | None,
        typer.Option(
            min=16,
            help="inflight: tokens of one step, of prompts and of rows that generate (default 512; cuda 8192). "
            "padded: rows x (longest prompt + longest output) of one batch (default 32768; cuda 131072).",
        ),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, max=4096, help="Rows that generate at once.")] = 32,
    engine: Engine = "auto",
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65535,
            help="Serve /metrics, /healthz and /readyz; with --devices, on as many ports from this one on.",
        ),
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that SIGTERM gives the running batches.")] = 30.0,
    trust_remote_code: TrustRemoteCode = False,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End with this process.")] = None,
    notify_fd: Annotated[int | None, typer.Option(hidden=True, help="A socket that hears when it serves.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch (default: its own choice).")] = None,
) -> None:
    """Serve a model until SIGTERM: the running batches get a grace period, then they are handed back."""
    _require_extra()
    settings, this = Settings.load(), worker_name()
    name, source = split_model(model)
    source = check_allowed(source, settings.allowed_models)
    if devices is not None:
        _supervise(context, settings, devices)
    _end_at_once_while_loading()
    setup_logging(settings)
    sign_lines(worker=this)
    from worker.app import WorkerOptions, run_worker

    _set_threads(threads)
    options = WorkerOptions(
        model=name,
        source=source,
        concurrency=concurrency,
        device=device,
        dtype=dtype,
        engine=engine,
        max_batch_tokens=max_batch_tokens,
        max_rows=max_rows,
        metrics_port=metrics_port,
        grace_s=grace,
        trust_remote_code=trust_remote_code,
        parent_pid=parent,
        name=this,
        notify_fd=notify_fd,
    )
    with service(settings), traced("promptmill-worker"):
        status = run_worker(settings, options)
    raise typer.Exit(status)


@app.command(epilog=f"Example:{EPILOG_NEWLINES}promptmill-worker doctor --model gpt2")
def doctor(
    model: Model,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: Engine = "auto",
    trust_remote_code: TrustRemoteCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Load a model and generate one prompt: device, dtype, engine, attention, context, memory."""
    _require_extra()
    settings = Settings.load()
    name, source = split_model(model)
    source = check_allowed(source, settings.allowed_models)
    setup_logging(settings)
    from worker.app import WorkerOptions
    from worker.doctor import examine

    options = WorkerOptions(
        model=name, source=source, device=device, dtype=dtype, engine=engine, trust_remote_code=trust_remote_code
    )
    report: dict[str, Any] = examine(options)
    if as_json:
        json_out(report)
        return
    for key, value in report.items():
        sys.stdout.write(f"{key:>16}  {value}\n")


def _require_extra() -> None:
    """The base install has this command too. Raises InputError where what it runs on is not there."""
    if any(find_spec(package) is None for package in ("torch", "transformers", "safetensors")):
        raise InputError("this install of promptmill has no engine: pip install 'promptmill[worker]'")


def _end_at_once_while_loading() -> None:
    """Until the worker is listed there is nothing to hand back, and its signals end it whatever it is at.

    As the first process of a container it would not even hear SIGTERM, and Ctrl-C would wait until the model is loaded.
    """

    def end(number: int, _: object) -> None:
        os._exit(EXIT_INTERRUPTED if number == signal.SIGINT else 0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _supervise(context: typer.Context, settings: Settings, devices: str) -> NoReturn:
    """Become the supervisor of a process for each device, all with the flags of this one. Raises InputError."""
    from worker.devices import choose
    from worker.supervisor.plan import Plan, become_supervisor, plan_children

    if _was_given(context, "device"):
        raise InputError("--device and --devices exclude each other: give one of them")
    children = plan_children(
        choose(devices, os.environ.get("CUDA_VISIBLE_DEVICES")),
        os.environ,
        cores=_cores(),
        threads=context.params["threads"],
        metrics_port=context.params["metrics_port"],
    )
    own = ("devices", "threads", "metrics_port", "parent", "notify_fd")
    command = [sys.executable, "-P", "-m", "worker", "start", *_given(context, without=own)]
    become_supervisor(
        Plan(command, children, context.params["grace"], log_level=settings.log_level, log_format=settings.log_format)
    )


def _given(context: typer.Context, without: Sequence[str]) -> list[str]:
    """The flags that were given on the command line, spelled out."""
    flags: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        if name in without or not _was_given(context, name):
            continue
        value = context.params[name]
        if isinstance(value, bool):
            flags.append(option.opts[0] if value else option.secondary_opts[0])
        else:
            flags += [f"{option.opts[0]}={one}" for one in (value if isinstance(value, tuple | list) else [value])]
    return flags


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _cores() -> int:
    """As many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def main() -> None:
    run_app(app)
