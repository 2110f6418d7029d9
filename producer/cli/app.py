"""The ``promptmill`` command: its groups, and what is set up before any of them runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs import __version__
from jobs.console import Interrupted, setup_logging
from jobs.settings import Settings
from jobs.telemetry.tracing import setup_tracing
from producer.cli import control, doctor, exporter, jobs, report, results, run, submit


class _Commands(TyperGroup):
    """The commands, whose Ctrl-C ``run_app`` is told of: typer would end without a word."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


app = typer.Typer(
    name="promptmill",
    cls=_Commands,
    help="Files of prompts in, Parquet datasets of generated text out, on your own machines.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for group in (run, submit, jobs, control, results, report, exporter, doctor):
    group.add_commands(app)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"promptmill {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    settings = Settings.load()
    level = "warning" if settings.log_level == "info" else settings.log_level
    setup_logging(settings.model_copy(update={"log_level": level}))
    setup_tracing("promptmill")
