"""What both command lines share: running the app with the exit codes of the error tree, logging, JSON output."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from jobs.errors import PromptmillError
from jobs.settings import Settings

#: Between the lines of an epilog: click keeps these line breaks.
EPILOG_NEWLINES = "\n\n"

EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130


def json_out(document: Any) -> None:
    """Print exactly one JSON document on stdout."""
    sys.stdout.write(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode() + "\n")
    sys.stdout.flush()


def run_app(app: Callable[[], object]) -> None:
    """Run a command line and exit with the code that its outcome has; a user never sees a traceback of ours.

    ``app`` exits by itself (SystemExit) after usage errors and where a command chose its exit code.
    """
    code = 0
    try:
        app()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except PromptmillError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is left to say, and the interpreter must not try at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        logging.getLogger("promptmill").debug("internal error", exc_info=True)
        sys.stderr.write(
            f"error: internal error ({type(error).__name__}: {error}); please report it with the output of the same "
            "command under PROMPTMILL_LOG_LEVEL=debug\n"
        )
        code = EXIT_INTERNAL
    sys.exit(code)


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(entry).decode()


def setup_logging(settings: Settings) -> None:
    """Log to stderr at the level and in the form that the settings ask for."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "urllib3", "filelock", "kombu", "amqp", "celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
