"""What a log line says besides its message: the worker, and the job, batch and attempt that it is about."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

#: The fields of a line, in this order. A line names its own by ``extra``: ``_log.info("...", extra={"job": job})``.
FIELDS = ("worker", "job", "batch", "attempt")

#: Those of what this thread does at this moment.
_about: ContextVar[Mapping[str, Any]] = ContextVar("about", default={})  # noqa: B039  # replaced, never changed
#: Those of every line of this process.
_process: dict[str, Any] = {}


def turn_to(**fields: Any) -> None:
    """What this thread logs from now on is about these, no longer about what it was before. A line's ``extra`` wins.

    Not undone when the work fails: the line that says so comes after that.
    """
    _about.set(fields)


def sign_lines(**fields: Any) -> None:
    """Every line of this process says these from now on."""
    _process.update(fields)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, an exception with all its lines included."""

    def format(self, record: logging.LogRecord) -> str:
        # Imported late, as all that a command's first second does not need.
        from datetime import UTC, datetime

        import orjson

        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name in FIELDS if (value := self._field(record, name)) is not None}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(_sound(entry), default=str).decode()

    def _field(self, record: logging.LogRecord, name: str) -> Any:
        for fields in (record.__dict__, _about.get(), _process):
            if fields.get(name) is not None:
                return fields[name]
        return None


def _sound(entry: dict[str, Any]) -> dict[str, Any]:
    """What JSON can hold: names of files may have bytes that are no UTF-8."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in entry.items()
    }
