"""How both commands end and log: run as processes, as people run them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import logging, sys
from jobs.console import Interrupted, json_out, run_app, setup_logging
from jobs.errors import *
from jobs.settings import Settings
"""


def run(code: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PRELUDE + code], capture_output=True, text=True, timeout=200, check=False, **options
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
        ("KeyboardInterrupt()", 130, "interrupted\n"),
        ("Interrupted('it goes on')", 130, "interrupted: it goes on\n"),
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
        timeout=200, check=False,
    )  # fmt: skip
    assert ended.stdout.splitlines() == ["{", "0"]
    assert ended.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("code", ["json_out({'row': 1})", "sys.stdout.write('row')", "print('row'); sys.exit(1)"])
def test_a_stdout_that_is_full_is_told(code: str, unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", f"{PRELUDE}def app(): {code}\nrun_app(app)"], stdout=full, stderr=subprocess.PIPE,
            env={"PYTHONUNBUFFERED": unbuffered}, text=True, timeout=200, check=False,
        )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (2, "error: stdout cannot be written: No space left on device\n")


def test_a_full_disk_elsewhere_is_not_blamed_on_stdout() -> None:
    ended = run("def app(): raise OSError(28, 'No space left on device', 'spill')\nrun_app(app)")
    assert ended.returncode == 70


def test_the_command_line_is_guarded_before_its_imports() -> None:
    """A Ctrl-C among the imports is quiet because none of the slow ones come before the guard."""
    code = "import sys, producer.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True)
    slow = {"typer", "pydantic", "pyarrow", "celery", "orjson", "rich", "jobs.console", "producer.client"}
    assert slow.isdisjoint(loaded.stdout.split())


def test_an_interrupt_among_the_imports_is_one_quiet_line() -> None:
    code = (
        "import signal, sys\n"
        "class Finder:\n"
        "  def find_spec(self, name, *_):\n"
        "    if name == 'typer': signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "sys.argv = ['promptmill', 'list']\n"
        "from producer.cli import main; main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "interrupted\n")


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


SERVICE = "s = Settings.load(log_format='json')\nsetup_logging(s)\ndef app():\n  with service(s): {}\nrun_app(app)"


@pytest.mark.parametrize(
    ("statement", "code", "said"),
    [
        ("raise RedisUnavailableError('Redis is away')", 3, "Redis is away"),
        ("raise KeyError('x')", 70, "internal error; please report it"),
        ("import warnings; warnings.warn('mind this')", 0, "UserWarning: mind this"),
        ("t = __import__('threading').Thread(target=lambda: 1 / 0, name='work'); t.start(); t.join()", 0,
         "the thread work ended"),
    ],
)  # fmt: skip
def test_what_a_service_with_a_json_log_has_to_say_is_json(statement: str, code: int, said: str) -> None:
    ended = run(PRELUDE.replace("run_app,", "run_app, service,") + SERVICE.format(statement))
    (line,) = [json.loads(text) for text in ended.stderr.splitlines()]
    assert (ended.returncode, said in line["message"]) == (code, True), line
