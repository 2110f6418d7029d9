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


def test_the_last_line_of_stdout_has_the_rates_of_both_sides_and_their_ratio(found: dict[str, Any]) -> None:
    assert found["bench"] == "pipeline"
    assert (found["prompts"], found["rounds"], found["threads"]) == (PROMPTS, 1, 1)
    assert 0 < found["pipeline_tokens_per_s"] < found["window_tokens_per_s"]
    assert found["ratio"] == pytest.approx(found["pipeline_tokens_per_s"] / found["bare_tokens_per_s"], abs=1e-3)
    assert found["ratio"] < found["ratio_accepted"]


def test_both_sides_did_the_same_work_with_the_same_engine(found: dict[str, Any]) -> None:
    (run,) = found["runs"]
    bare, pipeline = run["bare"], run["pipeline"]
    for what in ("engine", "prompt_tokens", "completion_tokens"):
        assert bare[what] == pipeline[what]
    assert found["engine"] == "inflight"
    # Log-normal around 24 has a mean of 24 exp(0.6^2 / 2) = 28.7.
    assert found["completion_tokens"] == bare["completion_tokens"] == pytest.approx(28.7 * PROMPTS, rel=0.02)
    assert bare["prompt_tokens"] > 10 * PROMPTS


def test_the_phases_of_the_pipeline_add_up_to_its_seconds(found: dict[str, Any]) -> None:
    pipeline = found["runs"][0]["pipeline"]
    phases = [pipeline[name] for name in ("submit", "claim", "generate", "commit", "finalize")]
    assert min(phases) >= 0
    assert sum(phases) == pytest.approx(pipeline["seconds"])
    assert 0 < pipeline["first_token"] < pipeline["generate"]
    assert pipeline["step_seconds"] < pipeline["generate"]


def test_people_see_each_round_and_where_the_time_went(done: subprocess.CompletedProcess[str]) -> None:
    words = [line.split() for line in done.stderr.splitlines() if line]
    first = {line[0] for line in words}
    assert {"round", "median", "phase", "submit", "claim", "generate", "commit", "finalize", "side"} <= first


def test_with_a_fake_engine_every_batch_of_every_job_goes_through() -> None:
    done = bench("--fake", "--workers", "1", "--jobs", "2", "--batches", "6")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout.splitlines()[-1])["runs"]
    assert (run["workers"], run["jobs"], run["batches"], run["rows"]) == (1, 2, 6, 6 * 256)
    assert run["rows_per_s"] == pytest.approx(run["rows"] / run["seconds"], rel=0.02)
    assert run["worker_cpu_ms_per_batch"] > 0


def test_a_worker_that_cannot_start_is_one_sentence_and_its_reason() -> None:
    done = bench("--model", "tiny", "--prompts", "2", "--rounds", "1", "--max-rows", "5000")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("pipeline: ")
