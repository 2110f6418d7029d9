"""The benchmark of checking runs, checks that all rows were seen, and ends with one JSON line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_SCRIPT = Path(__file__).resolve().parents[3] / "ops" / "bench" / "submit"


def test_it_ends_with_one_json_line() -> None:
    command = [sys.executable, str(_SCRIPT), "--rows", "300", "--repeat", "1"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (line,) = output.splitlines()
    found = json.loads(line)
    assert [(run["mode"], run["rows"]) for run in found["results"]] == [
        (mode, 300) for mode in ("check", "submit", "read", "copy", "stream")
    ]
    assert found["submit_to_copy"]["300"] > 0
