"""Waiting, in tests of real processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

#: Seconds for anything that is waited for; far more than it takes on a machine that has nothing else to do.
PATIENCE_S = 120.0

T = TypeVar("T")


def wait_until(what: str, look: Callable[[], T], timeout_s: float = PATIENCE_S, every_s: float = 0.05) -> T:
    """The first true answer of ``look``. Raises TimeoutError, naming ``what``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(every_s)
    raise TimeoutError(f"after {timeout_s:g} s still waiting: {what}")
