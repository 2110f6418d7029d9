"""ops/bench/ledger, run as a user runs it: its counts are the ledger's own, and it ends with one JSON line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "ops" / "bench" / "ledger"
SIZE = ("--jobs", "3", "--clients", "2", "--concurrency", "2", "--batches", "40", "--rounds", "1", "--rows", "256000")


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *SIZE], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def found(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    document: dict[str, Any] = json.loads(line)
    return document


def test_a_run_says_what_all_clients_did_together(found: dict[str, Any]) -> None:
    (run,) = found["throughput"]
    assert (run["jobs"], run["clients"], run["batches"]) == (3, 2, 40)
    assert run["together_per_s"] == pytest.approx(2 * 40 / run["seconds"], rel=0.02)
    assert 0 < run["claim_p50_ms"] <= run["claim_p95_ms"]
    assert run["client_us"] > 0


def test_each_transition_has_its_cost(found: dict[str, Any]) -> None:
    calls = [one["call"] for one in found["cost"]]
    assert {"claim", "finish", "heartbeat of 4", "sweep", "has_work"} <= set(calls)
    assert {one["jobs"] for one in found["cost"]} == {3}


def test_the_memory_of_a_job_grows_with_its_leases_and_is_given_back(found: dict[str, Any]) -> None:
    sizes = {row["stage"]: row["keys_bytes"] for row in found["memory"]}
    assert sizes["start"] < sizes["half way"] < sizes["all leased"] < 64e6
    assert sizes["ended"] < sizes["done"] < sizes["all leased"]


def test_people_see_three_tables(done: subprocess.CompletedProcess[str]) -> None:
    for words in ("together/s", "scripts us", "all leased"):
        assert words in done.stderr
