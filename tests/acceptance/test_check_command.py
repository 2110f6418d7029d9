"""``check`` beside a live worker: how long a job will take, in which tokens, and which rows will not fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mill import Mill
from tests.patience import wait_until


@pytest.fixture(scope="module")
def shown(mill: Mill) -> None:
    """The worker of ``tiny`` has had work."""
    mill.call("submit", mill.prompts("shown", 20), "--model", "tiny", "--max-tokens", "6", "--wait").ok()

    def worked() -> bool:
        with mill.ledger() as ledger:
            return ledger.shown("tiny") is not None and worker_of_tiny(mill)["shown"]["rows_per_s"] > 0

    wait_until("the worker to show its speed", worked)


def worker_of_tiny(mill: Mill) -> dict[str, Any]:
    """What ``workers --json`` says of it; other tests may have started workers of other models."""
    listed: list[dict[str, Any]] = mill.call("workers", "--json").ok().json
    (found,) = (worker for worker in listed if worker["model"] == "tiny")
    return found


@pytest.fixture(scope="module")
def source(mill: Mill) -> str:
    """Two rows beyond the 128 tokens of ``tiny``, whatever the tokenizer, and three that fit."""
    rows = [{"prompt": text} for text in ("a lamp", "the lamp " * 400, "a bag", "the bag", "qzx" * 500)]
    return mill.write("lengths.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.usefixtures("shown")
def test_after_a_job_its_worker_tells_what_the_next_will_take(mill: Mill, source: str) -> None:
    def at_once() -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What is told, and what the worker shows, where none of its heartbeats came in between."""
        before = worker_of_tiny(mill)["shown"]
        told = mill.call("check", source, "--model", "tiny", "--max-tokens", "10", "--json").ok().json
        return (told, before) if worker_of_tiny(mill)["shown"] == before else None

    told, worker = wait_until("the worker to show the same for a while", at_once)
    assert (told["context"], told["context_from"]) == (128, "live workers of 'tiny'")
    assert (told["too_long"]["rows"], told["too_long"]["counted"]) == (2, 0)
    assert [row["line"] for row in told["too_long"]["first"]] == [2, 5]
    assert told["tokens"]["chars_per_token"] == pytest.approx(worker["chars_per_token"], abs=1e-3)
    assert told["tokens"]["method"].endswith("as workers of this model measured")
    estimate = told["estimate"]
    assert estimate["workers"] == 1
    assert estimate["tokens_per_s"] > 0
    assert 0 < estimate["seconds"] <= estimate["seconds_at_most"]
    # The two rows that do not fit generate nothing.
    assert 0 < estimate["output_tokens"] <= 30
    seconds = (told["tokens"]["total"] + estimate["output_tokens"]) / estimate["tokens_per_s"]
    # The rate is rounded to three places too, which is the more of it the slower the machine.
    assert estimate["seconds"] == pytest.approx(seconds, abs=1e-3 * (1 + seconds / estimate["tokens_per_s"]))


@pytest.mark.usefixtures("shown")
def test_with_the_tokenizer_what_check_counts_is_what_the_worker_counts(mill: Mill, tiny: Path, source: str) -> None:
    told = mill.call("check", source, "--model", f"tiny={tiny}", "--max-tokens", "10", "--json").ok().json
    job = mill.call("submit", source, "--model", "tiny", "--max-tokens", "10", "--wait", "--allow-failed").ok()
    rows = mill.table(job.out.strip()).to_pylist()
    assert told["tokens"]["total"] == sum(row["prompt_tokens"] for row in rows)
    assert told["tokens"]["max"] == max(row["prompt_tokens"] for row in rows)
    assert told["too_long"]["rows"] == told["too_long"]["counted"] == 2
    assert [row["error_code"] for row in rows] == [None, "prompt_too_long", None, None, "prompt_too_long"]
    assert "warning: probably 2 rows too long for the context of 128 tokens" in job.err


def test_check_tells_people_the_same(mill: Mill, tiny: Path, shown: None, source: str) -> None:
    told = mill.call("check", source, "--model", f"tiny={tiny}", "--max-tokens", "10").ok().out
    assert "context   128 tokens (live workers of 'tiny')" in told
    assert f"counted with the tokenizer of {tiny}" in told.replace("\n            ", " ")
    assert "1 live worker of 'tiny', with work" in told
    assert "warning: 2 rows too long for the context of 128 tokens" in told
    assert "lengths.jsonl:2: " in told


def test_without_redis_or_store_the_file_alone_decides(mill: Mill, idle: Mill, source: str) -> None:
    away = {"PROMPTMILL_REDIS_URL": "redis://127.0.0.1:1/0"}
    told = mill.call("check", source, "--model", "tiny", "--json", **away).ok().json
    assert told["estimate"] is None
    assert any("no estimate of the time: Redis at 127.0.0.1:1 cannot be reached" in note for note in told["notes"])
    bad = mill.write("bad-check.jsonl", '{"prompt": ""}\n')
    assert mill.call("check", bad, "--model", "tiny", **away).code == 2

    told = idle.call("check", source, "--model", "tiny", "--json").ok().json
    assert "no Promptmill store at" in told["notes"][-1]
    assert not idle.store_path.exists()
    assert idle.call("check", source, "--json").ok().json["notes"] == []


def test_of_a_model_that_nobody_serves_it_says_how_to_get_an_estimate(mill: Mill, source: str) -> None:
    told = mill.call("check", source, "--model", "nobody").ok().out
    assert "no worker of 'nobody' was seen in seven days" in told.replace("\n      ", " ")


def test_json_has_every_problem(mill: Mill) -> None:
    bad = mill.write("all-bad.jsonl", "nonsense\n" * 12_000)
    done = mill.call("check", bad, "--json")
    assert (done.code, len(done.json["problems"]), done.json["total_problems"]) == (2, 12_000, 12_000)
    shown = mill.call("check", bad)
    assert shown.err.count("malformed JSON") == 20
    assert "... and 11,980 more" in shown.err


def test_counting_needs_no_torch(mill: Mill, tiny: Path, source: str) -> None:
    code = (
        "import sys; from producer.cli import main\n"
        f"sys.argv = ['promptmill', 'check', {source!r}, '--model', 'tiny={tiny}']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=mill.environment, capture_output=True)
