"""A worker is killed at each of the points at which what others see is half done; another one ends the job."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from ops.faults import plugin
from ops.faults.checker import Expected, Published, Work, check_job
from ops.faults.reference import texts_alone
from tests.integration.ledger.ledger_work import let_leases_expire
from tests.mill import LONG_LEASE, Mill
from tests.patience import wait_until

pytestmark = pytest.mark.faults

ROWS, BATCH, TOKENS = 20, 4, 8
PROMPTS = [f"the lamp number {i}" for i in range(ROWS)]
#: Seconds: what has come back is soon found.
SOON = {"PROMPTMILL_SWEEP_S": "0.3", **LONG_LEASE}


@pytest.fixture(scope="module")
def texts(tiny: Path) -> dict[tuple[int, int], str]:
    alone = texts_alone(tiny, PROMPTS, TOKENS)
    assert len(set(alone.values())) > ROWS / 2, "a model that says the same to all would hide what is mixed up"
    return {(index, 0): alone[prompt] for index, prompt in enumerate(PROMPTS)}


def submit(mill: Mill, name: str) -> str:
    rows = "".join(json.dumps({"prompt": prompt, "number": i}) + "\n" for i, prompt in enumerate(PROMPTS))
    source = mill.write(f"{name}.jsonl", rows)
    flags = ("--model", "tiny", "--max-tokens", str(TOKENS), "--batch-size", str(BATCH), "--job-id", name)
    return mill.call("submit", source, *flags).ok().out.strip()


@pytest.mark.parametrize("point", plugin.WORKER_POINTS)
def test_a_worker_that_is_killed_there_costs_no_row_and_no_row_is_written_twice(
    mill: Mill, tiny: Path, texts: dict[tuple[int, int], str], tmp_path: Path, point: str
) -> None:
    logs = {"PLUGIN": plugin.__name__, "FAULTS_LOG": str(tmp_path)}
    job, published = submit(mill, point.replace(" ", "-")), Published(mill.store_path)
    killed = mill.worker("tiny", tiny, **SOON, **logs, FAULTS_KILL=point)

    assert killed.wait() == -signal.SIGKILL, killed.said()
    published.look()
    with mill.redis() as client, mill.ledger() as ledger:
        let_leases_expire(client, ledger)
    heir = mill.worker("tiny", tiny, **SOON, **logs)
    try:
        wait_until("the job to end", lambda: mill.status(job)["status"] == "completed")
    finally:
        heir.close()
    assert check_job(mill.store_path, Expected(job, ROWS, texts=texts)) == []
    assert published.look() == []
    work = Work.of(tmp_path)
    assert work.rows - work.again == ROWS
    assert work.again <= work.in_hand[killed.pid]
