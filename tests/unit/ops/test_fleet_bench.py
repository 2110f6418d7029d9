"""ops/bench/fleet, run as a user runs it: its figures belong to what was done, and it ends with one JSON line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "ops" / "bench" / "fleet"
#: So many batches that the second worker has its share also where it begins a second later than the first.
BATCHES = 12
SCALING = ("--workers", "1", "2", "--batches", str(BATCHES), "--rows-per-s", "1000", "--rounds", "1")
FLEET = ("--fleet", "6", "--processes", "1", "--models", "2", "--jobs", "2", "--start-seconds", "0.5")
PACE = ("--batch-seconds", "0.5", "--seconds", "1.5")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    pytest.importorskip("torch")
    command = [sys.executable, str(SCRIPT), *SCALING, *FLEET, *PACE]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def found(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


def test_each_number_of_workers_has_its_rate_of_the_same_job(found: dict[str, Any]) -> None:
    one, two = found["scaling"]
    assert (one["workers"], two["workers"]) == (1, 2)
    for run in (one, two):
        assert run["rows"] == BATCHES * 256
        assert run["rows_per_s"] == pytest.approx(run["rows"] / run["seconds"], rel=0.01)
        # No worker is faster than its engine.
        assert 0 < run["rows_per_s"] <= run["workers"] * 1000
    assert one["ratio"] == 1.0
    assert two["ratio"] == pytest.approx(two["rows_per_s"] / one["rows_per_s"] / 2, abs=0.002)


def test_a_real_worker_says_what_it_costs(found: dict[str, Any]) -> None:
    one = found["scaling"][0]
    assert one["worker_cpu_s_per_1000_rows"] > one["redis_cpu_s_per_1000_rows"] > 0
    assert one["connections_per_worker"] >= 2


def test_a_simulated_fleet_works_before_and_after_the_end_of_its_server(found: dict[str, Any]) -> None:
    fleet = found["simulation"]
    windows = {window["window"]: window for window in fleet["windows"]}
    assert list(windows) == ["idle", "batch 0.5 s", "after", "unthrottled"]
    assert windows["idle"]["claims_per_s"] == 0
    for name in ("batch 0.5 s", "after", "unthrottled"):
        assert windows[name]["claims_per_s"] > 0
        assert windows[name]["redis_us_per_claim"] > 0
    # Four slots of six workers, each of which makes two claims a second at most, give or take a fifth.
    assert windows["batch 0.5 s"]["claims_per_s"] <= 6 * 4 * 2 / 0.8 + 24
    assert windows["after"]["memory_mb"] > 0


def test_no_batch_is_claimed_twice_while_its_lease_lives(found: dict[str, Any]) -> None:
    fleet = found["simulation"]
    assert fleet["claimed"] >= fleet["done"] > 0
    assert fleet["claimed_twice"] == 0


def test_people_see_three_tables(done: subprocess.CompletedProcess[str]) -> None:
    for words in ("steady", "us/claim", "own cpu ms"):
        assert words in done.stderr
