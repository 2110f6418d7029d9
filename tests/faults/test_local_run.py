"""``run`` is interrupted, or killed; the same command goes on where it was, and no process is left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.errors import ModelError
from jobs.store import Store
from producer.local import LocalWorkers
from tests import gate, gated_run
from tests.mill import Mill
from tests.models import tiny_model
from tests.patience import wait_until
from tests.processes import Process

pytestmark = pytest.mark.faults

#: Many times the rows that its workers have in hand: these still end when it is interrupted.
ROWS = 480


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model with a chat template."""
    return tiny_model("gpt2", tmp_path_factory.mktemp("models") / "chat", chat=True, max_length=160)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Mill]:
    """A mill without a server: ``run`` brings its own."""
    mill = Mill(tmp_path, "")
    yield mill
    mill.close()


def arguments(mill: Mill, model: Path) -> tuple[str, ...]:
    rows = [{"messages": [{"role": "user", "content": f"lamp {n}"}], "number": n} for n in range(ROWS)]
    source = mill.write("chats.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--batch-size", "5", "--max-tokens", "16", "--device", "cpu")
    return ("run", source, "--model", f"chat={model}", *flags)


def start(mill: Mill, *command: str) -> Process:
    """Starts ``run``, whose worker waits before the gate of ``mill``, and waits until it has committed something."""
    before = len(mill.parts())
    process = mill.start(*command, PLUGIN=gated_run.__name__, **{gate.VARIABLE: str(mill.gate)})

    def committed() -> bool:
        assert process.alive, process.said()
        return len(mill.parts()) > before

    wait_until("the first part", committed)
    return process


def wait_drained(mill: Mill, times: int) -> None:
    """Until its worker has been told to stop for so many times."""
    log = mill.store_path / "_local" / "worker-1.log"
    wait_until("the worker to drain", lambda: log.read_text().count("draining: ") == times)


def children(mill: Mill) -> list[int]:
    """Processes that work for this store: their environment or command line names it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(mill.store_path).encode() in text:
                found.append(int(entry.name))
    return found


def assert_whole(mill: Mill) -> None:
    [folder] = (mill.store_path / "results").iterdir()
    table = pq.read_table(folder, partitioning=None)

    assert (folder / "_SUCCESS").exists()
    assert table["row_index"].to_pylist() == table["number"].to_pylist() == list(range(ROWS))
    assert set(table["status"].to_pylist()) == {"ok"}


def test_a_worker_of_a_run_does_not_found_another_store_in_the_place_of_one_that_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.local._MAX_QUICK_DEATHS", 1)
    monkeypatch.setattr("producer.local._QUICK_DEATH_S", 1e9)  # a busy machine takes long to start it
    store = Store.open(str(tmp_path / "store"), create=True)
    (tmp_path / "store").rename(tmp_path / "away")

    def give_up(workers: LocalWorkers) -> None:
        while True:
            workers.supervise()
            time.sleep(0.05)

    with (
        LocalWorkers(f"x={tmp_path}", 1, "redis://127.0.0.1:1/0", store, tmp_path / "logs") as workers,
        pytest.raises(ModelError, match=f"{store.id} has to be there .*there is no such folder"),
    ):
        give_up(workers)
    assert not (tmp_path / "store").exists()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_an_interrupted_and_then_killed_run_goes_on_with_the_same_command(alone: Mill, chat: Path) -> None:
    command = arguments(alone, chat)

    with alone.held(batch=4) as go_on_to:
        interrupted = start(alone, *command)
        interrupted.send(signal.SIGINT)
        wait_drained(alone, 1)
        go_on_to(ROWS)
        assert interrupted.wait() == 130
    assert "the same command goes on" in interrupted.said()
    assert "Traceback" not in interrupted.said()
    assert children(alone) == []
    assert 0 < len(alone.parts()) < ROWS / 5

    with alone.held(batch=len(alone.parts()) + 4) as go_on_to:
        killed = start(alone, *command)
        killed.send(signal.SIGKILL)
        killed.wait()
        # The server stays for the run that comes next; the worker sees that its parent is gone.
        wait_drained(alone, 2)
        go_on_to(ROWS)
        wait_until("the worker to end", lambda: len(children(alone)) <= 1)
    assert not list(alone.store_path.glob("results/*/_SUCCESS"))

    last = alone.run(*command, "--out", str(alone.folder / "copy.csv")).ok()
    assert f"{ROWS} of {ROWS} rows completed" in last.out
    assert len((alone.folder / "copy.csv").read_text().splitlines()) > ROWS
    assert_whole(alone)
    assert children(alone) == []
    assert len(alone.job_files()) == 1
