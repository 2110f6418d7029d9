"""``promptmill-worker``: serve a model, or check that this machine could."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from jobs.console import EPILOG_NEWLINES, json_out, run_app, setup_logging
from jobs.settings import Settings
from jobs.spec import split_model
from worker.allowed import check_allowed

app = typer.Typer(
    name="promptmill-worker",
    help="Serve a model to the jobs of a Promptmill store.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

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


@app.command(epilog=f"Example:{EPILOG_NEWLINES}promptmill-worker start --model copy=./my-model --concurrency 4")
def start(
    model: Model,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Batches in hand at once.")] = 4,
    device: Device = "auto",
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
    metrics_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Serve Prometheus metrics.")] = None,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that SIGTERM gives the running batches.")] = 30.0,
    trust_remote_code: TrustRemoteCode = False,
    parent: Annotated[int | None, typer.Option(hidden=True, help="End with this process.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of torch (default: its own choice).")] = None,
) -> None:
    """Serve a model until SIGTERM: the running batches get a grace period, then they are handed back."""
    settings = Settings.load()
    setup_logging(settings)
    name, source = split_model(model)
    source = check_allowed(source, settings.allowed_models)
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
    )
    raise typer.Exit(run_worker(settings, options))


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
    settings = Settings.load()
    setup_logging(settings)
    name, source = split_model(model)
    source = check_allowed(source, settings.allowed_models)
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


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def main() -> None:
    run_app(app)
