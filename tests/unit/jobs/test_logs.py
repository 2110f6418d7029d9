"""What the lines of a JSON log say, whichever thread writes them."""

from __future__ import annotations

import io
import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobs.telemetry.logs import JsonFormatter, sign_lines, turn_to

Said = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, Said]]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("test_logs")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    turn_to()
    sign_lines(worker=None)


def fields(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name in ("worker", "job", "batch", "attempt")}


def test_lines_are_about_what_their_thread_turned_to(log: tuple[logging.Logger, Said]) -> None:
    logger, said = log
    sign_lines(worker="w-1")
    turn_to(job="a", batch=0, attempt=1)
    logger.warning("one")
    other = threading.Thread(target=lambda: (turn_to(job="b"), logger.warning("two")))
    other.start()
    other.join()
    logger.warning("three")
    turn_to()
    logger.warning("four")
    mine = {"worker": "w-1", "job": "a", "batch": 0, "attempt": 1}
    assert [fields(line) for line in said()] == [mine, {"worker": "w-1", "job": "b"}, mine, {"worker": "w-1"}]


def test_a_line_may_be_about_something_else_than_its_thread(log: tuple[logging.Logger, Said]) -> None:
    logger, said = log
    turn_to(job="a", batch=3)
    logger.warning("the lease of %s expired", "b", extra={"job": "b", "batch": 7})
    assert fields(said()[0]) == {"job": "b", "batch": 7}
    assert said()[0]["message"] == "the lease of b expired"


def test_what_failed_is_still_what_the_line_of_its_failure_is_about(log: tuple[logging.Logger, Said]) -> None:
    logger, said = log
    try:
        turn_to(job="a", batch=3, attempt=2)
        raise ValueError("of two\nlines")
    except ValueError:
        logger.exception("it failed")
    (line,) = said()
    assert fields(line) == {"job": "a", "batch": 3, "attempt": 2}
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: of two\nlines")


def test_a_name_that_is_no_text_does_not_break_the_line() -> None:
    # Made by hand: what is logged in a test goes into its report, and no report can have such a name.
    record = logging.makeLogRecord({"msg": "a file named %s", "args": ("caf\udce9",)})
    assert json.loads(JsonFormatter().format(record))["message"] == "a file named caf\\udce9"
