"""What the benchmarks say and take alike: lines and tables on stderr, numbers from 1 on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

#: Title, key in the results, and width of a column.
Column = tuple[str, str, int]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(columns: Sequence[Column], rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print rows as a table for people."""
    shown = list(rows)
    say("".join(f"{title:>{width}}" for title, _, width in columns))
    for row in shown:
        say("".join(f"{_text(row[key]):>{width}}" for _, key, width in columns))
    say("")
    return shown


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _text(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
