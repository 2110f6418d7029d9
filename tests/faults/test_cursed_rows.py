"""A row that ends every process that runs it, or that an engine never comes back from, costs nobody else anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.faults import plugin
from ops.faults.curse import CURSE
from tests.mill import Mill, rows_in_order
from tests.patience import PATIENCE_S, wait_until
from tests.processes import Process
from worker.generate import MAX_CRASHES, ROW_BY_ROW_AFTER
from worker.heartbeat import EXIT_ENGINE

pytestmark = pytest.mark.faults


@pytest.fixture
def supervised(mill: Mill, tiny: Path) -> Callable[..., list[Process]]:
    """Keeps one cursed worker alive until some jobs have ended, as a supervisor would; all processes there were."""

    def supervise(*jobs: str, **env: str) -> list[Process]:
        started = [mill.worker("tiny", tiny, PLUGIN=plugin.__name__, **env)]

        def ended() -> bool:
            if not started[-1].alive:
                started.append(mill.worker("tiny", tiny, PLUGIN=plugin.__name__, **env))
            return all(mill.status(job)["status"] == "completed" for job in jobs)

        try:
            wait_until("the jobs to end", ended, 4 * PATIENCE_S, every_s=0.5)
        finally:
            started[-1].close()
        return started

    return supervise


def submit(mill: Mill, name: str, rows: int, cursed: int | None = None) -> str:
    """A job of ``rows`` rows, one of which carries the curse."""
    prompts = [f"{name} {i}: the lamp" + (f" has {CURSE}" if i == cursed else "") for i in range(rows)]
    source = mill.write(f"{name}.jsonl", "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    flags = ("--model", "tiny", "--max-tokens", "8", "--batch-size", "10")
    return mill.call("submit", source, *flags).ok().out.strip()


def test_a_row_that_ends_processes_becomes_poison_and_no_other_row_is_blamed(
    mill: Mill, supervised: Callable[..., list[Process]]
) -> None:
    cursed, beside = submit(mill, "cursed", 40, cursed=17), submit(mill, "beside", 30)
    processes = supervised(cursed, beside, FAULTS_CURSE="segv")

    status = mill.status(cursed)
    assert (status["rows"]["completed"], status["rows"]["failed"], status["errors"]) == (39, 1, {"poison": 1})
    assert mill.status(beside)["rows"]["completed"] == 30
    table = mill.table(cursed)
    assert rows_in_order(table) == [(index, 0) for index in range(40)]
    assert [index for index, code in enumerate(table["error_code"].to_pylist()) if code] == [17]
    assert len(processes) - 1 == ROW_BY_ROW_AFTER + MAX_CRASHES


def test_an_engine_that_stands_still_ends_its_process_and_loses_its_batches(
    mill: Mill, supervised: Callable[..., list[Process]], tmp_path: Path
) -> None:
    job = submit(mill, "hangs", 40, cursed=17)
    once = tmp_path / "once"
    processes = supervised(job, FAULTS_CURSE="hang", FAULTS_CURSE_ONCE=str(once), PROMPTMILL_STALL_S="6")

    assert mill.status(job)["rows"]["completed"] == 40
    assert once.exists()
    assert [process.returncode for process in processes[:-1]] == [EXIT_ENGINE]
