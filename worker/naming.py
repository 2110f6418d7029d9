"""The name of a worker process: in its registration, in the rows that it makes, and in its log."""

from __future__ import annotations

import os
import secrets
import socket


def worker_name() -> str:
    """A new one: where the process runs, and what tells it from all that ran or will run there."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
