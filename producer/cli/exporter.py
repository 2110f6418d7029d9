"""``exporter``: metrics for Prometheus, and the upkeep of jobs where no worker lives."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.console import EPILOG_NEWLINES, service, setup_logging
from jobs.spec import split_model
from producer.cli.flags import PlaceFlags, with_flags

_EXAMPLES = (
    "Example: promptmill exporter --port 9464",
    "Scaled from zero: promptmill exporter --model gpt2 --model llama",
)


def add_commands(app: typer.Typer) -> None:
    app.command("exporter", epilog=EPILOG_NEWLINES.join(_EXAMPLES))(exporter_command)


@with_flags(place=PlaceFlags)
def exporter_command(
    place: PlaceFlags,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="/metrics, /healthz and /readyz are served there.")
    ] = 9464,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "0.0.0.0",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A model to list (with 0) even before its first job; repeatable."),
    ] = None,
) -> None:
    """Serve Prometheus metrics of jobs, backlog and workers until SIGTERM, and do the upkeep where no worker lives."""
    settings, models = place.settings(), [split_model(one)[0] for one in model or ()]
    setup_logging(settings)
    # Imported late: prometheus-client and Celery take a while, and no other command wants them.
    from producer.exporter.service import run_exporter

    with service(settings):
        run_exporter(settings, port, host, models)
