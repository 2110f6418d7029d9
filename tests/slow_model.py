"""A plugin of a worker (see tests/forkserver.py) whose model takes for ever to be loaded."""

from __future__ import annotations

import sys
import time
from typing import Any

import worker.app


def install() -> None:
    def load(*_: Any, **__: Any) -> None:
        sys.stderr.write("loads\n")
        time.sleep(3_600)

    worker.app.load_model = load  # type: ignore[assignment]
