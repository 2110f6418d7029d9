"""ops/bench/pipeline, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "ops" / "bench" / "pipeline"
PROMPTS = 60


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--threads", "1", *arguments]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("torch")
    return bench("--model", "tiny", "--prompts", str(PROMPTS), "--rounds", "1")


@pytest.fixture(scope="module")
def found(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON line that ends stdout."""
    assert done.returncode == 0, done.stderr
    line: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return line


pytestmark = pytest.mark.slow
