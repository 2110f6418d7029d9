"""The short form of ``ops/faults/run``: what takes minutes or hours there is tried for seconds here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

RUN = Path(__file__).parents[2] / "ops" / "faults" / "run"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(RUN), *arguments], capture_output=True, text=True, check=False)


@pytest.mark.timeout(400)
def test_until_four_workers_were_killed_all_faults_together_break_no_promise() -> None:
    done = run("--minutes", "0.2", "--kills", "4", "--seed", "5", "--pace", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == []
    assert found["kills"] >= 4
    assert found["rows"] > 0
    assert found["generated"]["again"] <= found["generated"]["in_hand_of_the_dead"]


@pytest.mark.timeout(300)
def test_a_short_soak_measures_what_is_held() -> None:
    done = run("--soak", "--minutes", "0.15")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["violations"] == []
    assert found["jobs"] >= 1
    assert found["redis_keys_without_ttl"]["last_quarter"] < 50


def test_a_fault_that_there_is_not_is_refused() -> None:
    done = run("--faults", "kill,flood")
    assert done.returncode == 2
    assert "no fault is called flood" in done.stderr
