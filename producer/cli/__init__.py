"""``promptmill``: parse, call, print. One file for each group of commands.

Nothing is imported here: a command's imports take a second or two, and a Ctrl-C in them ends like any other.
"""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from jobs.console import run_app
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run_app(_run)


def _run() -> None:
    if sys.argv[1:] == ["--version"]:
        from jobs import __version__

        sys.stdout.write(f"promptmill {__version__}\n")
        return
    from jobs.parquet import keep_pandas_out

    keep_pandas_out()
    from producer.cli.app import app

    app()
