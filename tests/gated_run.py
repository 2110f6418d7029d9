"""A plugin of ``promptmill run`` (see tests/outcome.py) whose workers wait before the gate of tests/gate.py."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any

from producer import local
from tests import gate

_WORKER = """
import sys
from pathlib import Path
from tests import gate
gate.install(Path(sys.argv.pop(1)))
from worker.cli import main
main()
"""


def install() -> None:
    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        python, *flags = command
        assert flags[:2] == ["-m", "worker"]
        return subprocess.Popen([python, "-c", _WORKER, os.environ[gate.VARIABLE], *flags[2:]], **options)

    local.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": start})  # type: ignore[assignment]
