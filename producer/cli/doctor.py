"""``workers`` and ``doctor``: what lives, and what is wrong."""

from __future__ import annotations

import dataclasses
import sys

import typer
from rich.table import Table

from jobs.console import json_out
from jobs.recover import other_stores
from producer.cli.flags import JsonFlag, PlaceFlags, with_flags
from producer.cli.jobs import opened
from producer.cli.text import print_table, say
from producer.doctor import examine


def add_commands(app: typer.Typer) -> None:
    app.command("workers", epilog="Example: promptmill workers --json")(workers_command)
    app.command("doctor", epilog="Example: promptmill doctor")(doctor_command)


@with_flags(place=PlaceFlags)
def workers_command(place: PlaceFlags, as_json: JsonFlag = False) -> None:
    """Live workers: model, device, context length, slots, rows/s, tokens/s, batches in hand."""
    with opened(place) as connection:
        found = connection.ledger.workers()
        others = "" if found else other_stores(connection.ledger, connection.store)
    if as_json:
        json_out([dataclasses.asdict(worker) for worker in found])
        return
    if not found:
        say(
            f"no live workers of {connection.store.uri}; `promptmill-worker start --model NAME=PATH_OR_ID` starts one"
            + (f"; this Redis also serves {others}" if others else "")
        )
        return
    columns = ("worker", "version", "model", "device", "dtype", "context", "in hand", "slots", "rows/s", "tokens/s")
    table = Table(*columns, box=None, pad_edge=False)
    for worker in found:
        table.add_row(
            worker.id,
            worker.version,
            worker.model,
            worker.device,
            worker.dtype,
            f"{worker.shown.context:,}" if worker.shown.context else "",
            str(worker.in_hand),
            str(worker.slots),
            f"{worker.rows_per_s:,.1f}",
            f"{worker.tokens_per_s:,.0f}",
        )
    print_table(table)


@with_flags(place=PlaceFlags)
def doctor_command(place: PlaceFlags, as_json: JsonFlag = False) -> None:
    """Check the store, Redis and versions, and say how to mend what is wrong."""
    findings = examine(place.settings())
    if as_json:
        json_out([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "ok  " if finding.ok else "BAD "
            sys.stdout.write(f"{mark} {finding.what}: {finding.found}\n")
            if finding.mend:
                sys.stdout.write(f"     -> {finding.mend}\n")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(3)
