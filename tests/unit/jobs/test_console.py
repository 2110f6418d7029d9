"""How both commands end and log: run as processes, as people run them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PRELUDE = """
import logging, sys
from jobs.console import json_out, run_app, setup_logging
from jobs.errors import *
from jobs.settings import Settings
"""


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=60, check=False, **options
    )  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        ("InputError('--n 0: give one')", 2, "error: --n 0: give one\n"),
        ("SourceError([Problem('a.csv', 3, 'no prompt')])", 2, "error: a.csv:3: no prompt\n"),
        ("RedisUnavailableError('Redis is away')", 3, "error: Redis is away\n"),
        ("ForeignStoreError('not ours')", 3, "error: not ours\n"),
        ("JobNotCompletedError('it failed')", 1, "error: it failed\n"),
        ("ModelError('no such model')", 2, "error: no such model\n"),
        ("KeyboardInterrupt()", 130, ""),
        ("SystemExit(5)", 5, ""),
    ],
)
def test_an_error_is_one_line_and_its_exit_code(raised: str, code: int, said: str) -> None:
    ended = run(f"def app(): raise {raised}\nrun_app(app)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", said)


def test_an_error_of_ours_shows_no_traceback_and_asks_for_a_report() -> None:
    ended = run("def app(): raise KeyError('x')\nrun_app(app)")
    assert ended.returncode == 70
    assert ended.stderr.startswith("error: internal error (KeyError: 'x')")
    assert "Traceback" not in ended.stderr


def test_the_traceback_is_there_for_who_asks() -> None:
    ended = run("setup_logging(Settings.load(log_level='debug'))\ndef app(): raise KeyError('x')\nrun_app(app)")
    assert "Traceback" in ended.stderr


def test_a_command_that_ends_by_itself_is_done() -> None:
    ended = run("run_app(lambda: json_out({'id': 'é', 'rows': [1]}))")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout) == {"id": "é", "rows": [1]}


def test_a_reader_that_has_gone_is_no_error() -> None:
    script = PRELUDE + "def app():\n  for _ in range(100_000): json_out({'row': 1})\nrun_app(app)"
    command = f'"{sys.executable}" -c "$SCRIPT" | head -n 1; echo "${{PIPESTATUS[0]}}"'
    ended = subprocess.run(
        ["bash", "-c", command], env={"SCRIPT": script, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert ended.stdout.splitlines() == ["{", "0"]
    assert ended.stderr == ""


def test_log_lines_go_to_stderr_from_the_level_asked_for() -> None:
    ended = run(
        "setup_logging(Settings.load(log_level='warning'))\n"
        "logging.getLogger('worker').info('quiet'); logging.getLogger('worker').warning('batch %d', 3)"
    )
    assert ended.stdout == ""
    assert ended.stderr.endswith("WARNING worker: batch 3\n")
    assert "quiet" not in ended.stderr


def test_json_logs_are_one_object_a_line() -> None:
    ended = run(
        "setup_logging(Settings.load(log_format='json'))\n"
        "try: 1 / 0\nexcept ZeroDivisionError: logging.getLogger('worker').exception('bad\\nnews')"
    )
    (line,) = ended.stderr.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("error", "worker", "bad\nnews")
    assert entry["time"].endswith("+00:00")
    assert "ZeroDivisionError" in entry["exception"]
