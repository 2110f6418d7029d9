"""The plugin's part for prompts that a worker cannot stand: those with CURSE in them.

FAULTS_CURSE says what such a prompt does as soon as the model is to run it: ``segv`` (the process ends as of a bug in
a library) or ``hang`` (the engine stands still). With FAULTS_CURSE_ONCE, a path, it does so only until that file is
there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker import generate
from worker.engine.runner import Runner

CURSE = "a curse"

_cursed: set[tuple[int, ...]] = set()
_encode, _run = generate.encode, Runner.run


def encode(worker: Any, prompt: Any) -> list[int]:
    ids = _encode(worker, prompt)
    if CURSE in (prompt.prompt or ""):
        _cursed.add(tuple(ids))
    return ids


def run(self: Runner, chunks: Sequence[Any]) -> Any:
    if any(tuple(chunk.row.prompt_ids) in _cursed for chunk in chunks) and _is_due():
        if os.environ["FAULTS_CURSE"] == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        time.sleep(3_600)
    return _run(self, chunks)


def _is_due() -> bool:
    once = os.environ.get("FAULTS_CURSE_ONCE")
    if once is None:
        return True
    try:
        Path(once).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def install() -> None:
    generate.encode = encode
    Runner.run = run  # type: ignore[method-assign]
