"""A gate before which the workers of a test wait: its job is half way, and stays there until the test has seen it.

On a machine that is fast, or slow where the test runs, a job of a few seconds would be over by then.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: The variable that names the gate's file to a worker; see tests/forkserver.py.
VARIABLE = "TESTS_GATE"


@contextlib.contextmanager
def shut(gate: Path, batch: int) -> Iterator[Callable[[int], None]]:
    """Meanwhile batches with this number and higher ones, of any job, are generated and not committed.

    What is yielded moves the gate on to another number.
    """

    def move(batch: int) -> None:
        written = gate.with_suffix(".new")
        written.write_text(str(batch))
        written.rename(gate)

    move(batch)
    try:
        yield move
    finally:
        gate.unlink()


def install(gate: Path) -> None:
    """In a worker."""
    from worker import batch

    commit = batch._commit

    def commit_in_time(worker: Any, job: Any, claim: Any, *rest: Any) -> Any:
        while _is_shut(gate, claim.batch) and not worker.abandoned.is_set():
            time.sleep(0.02)
        return commit(worker, job, claim, *rest)

    batch._commit = commit_in_time


def _is_shut(gate: Path, batch: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return batch >= int(gate.read_text())
    return False
