"""What both command lines share: running the app with the exit codes of the error tree, logging, JSON output.

Little is imported here: a Ctrl-C in the first second of a command is to find ``run_app`` at work.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from jobs.errors import PromptmillError, SourceError, one_line
from jobs.telemetry.logs import JsonFormatter

#: Between the lines of an epilog: click keeps these line breaks.
EPILOG_NEWLINES = "\n\n"

EXIT_STDOUT = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130


class Interrupted(BaseException):
    """Raised when Ctrl-C ends a command; the message, if any, says what became of its work.

    Not a KeyboardInterrupt: typer would end at that without a word.
    """


def json_out(document: Any) -> None:
    """Print exactly one JSON document on stdout."""
    import orjson

    options = orjson.OPT_INDENT_2 | orjson.OPT_NAIVE_UTC
    sys.stdout.write(orjson.dumps(document, default=str, option=options).decode() + "\n")
    sys.stdout.flush()


def run_app(app: Callable[[], object]) -> None:
    """Run a command line and exit with the code that its outcome has; a user never sees a traceback of ours.

    ``app`` imports the command line and calls it. It exits by itself (SystemExit) after usage errors and where
    a command chose its exit code.
    """
    try:
        code = _outcome(app)
    except (KeyboardInterrupt, Interrupted) as interrupt:
        said = f": {interrupt}" if str(interrupt) else ""
        sys.stderr.write(f"interrupted{said}\n")
        code = EXIT_INTERRUPTED
    sys.exit(code)


def _outcome(app: Callable[[], object]) -> str | int | None:
    """The exit code of ``app``; what is wrong is told on stderr."""
    code: str | int | None = 0
    try:
        try:
            app()
        except SystemExit as end:
            code = end.code
        # Here, not at the interpreter's end, where a full disk is a line of Python's own.
        sys.stdout.flush()
    except PromptmillError as error:
        # Of a source each problem is a line, and has made itself one.
        said = str(error) if isinstance(error, SourceError) else one_line(str(error))
        sys.stderr.write(f"error: {said}\n")
        return error.exit_code
    except BrokenPipeError:
        # The reader has gone (`| head`): nothing is left to say.
        _drop_stdout()
    except Exception as error:
        if isinstance(error, OSError) and _stdout_is_at_fault(error):
            _drop_stdout()
            sys.stderr.write(f"error: stdout cannot be written: {error.strerror or error}\n")
            return EXIT_STDOUT
        logging.getLogger("promptmill").debug("internal error", exc_info=True)
        sys.stderr.write(
            f"error: internal error ({type(error).__name__}: {error}); please report it with the output of the same "
            "command under PROMPTMILL_LOG_LEVEL=debug\n"
        )
        return EXIT_INTERNAL
    return code


def _stdout_is_at_fault(error: OSError) -> bool:
    """Whether ``error`` was stdout's: it still cannot take what it holds, or holds nothing and no file is named."""
    try:
        sys.stdout.flush()
    except OSError:
        return True
    # PYTHONUNBUFFERED: what could not be written is gone.
    return error.filename is None and getattr(sys.stdout, "write_through", False)


def _drop_stdout() -> None:
    """Send what stdout still holds nowhere: the interpreter must not try it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class LogSettings(Protocol):
    """What of the settings concerns the log."""

    @property
    def log_level(self) -> str: ...

    @property
    def log_format(self) -> str: ...


@contextmanager
def service(settings: LogSettings) -> Iterator[None]:
    """Around what goes on until it is told to end: why it ends otherwise is a line of its log, whatever its form.

    Where the log is JSON, whoever reads it takes nothing else.
    """
    if settings.log_format == "text":
        yield
        return
    try:
        yield
    except PromptmillError as error:
        logging.getLogger("promptmill").critical("%s", error)
        raise SystemExit(error.exit_code) from error
    except Exception:
        logging.getLogger("promptmill").critical("internal error; please report it", exc_info=True)
        raise SystemExit(EXIT_INTERNAL) from None


def setup_logging(settings: LogSettings) -> None:
    """Log to stderr at the level and in the form that the settings ask for; as JSON, Python's warnings too."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(JsonFormatter())
        logging.captureWarnings(True)
        threading.excepthook = _log_thread_error
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "urllib3", "filelock", "kombu", "amqp", "celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    """What ended a thread, as a line of the log: Python's own words are many lines of text."""
    if error.exc_value is not None and not isinstance(error.exc_value, SystemExit):
        trace = (error.exc_type, error.exc_value, error.exc_traceback)
        name = error.thread.name if error.thread else "?"
        logging.getLogger("promptmill").error("the thread %s ended", name, exc_info=trace)
