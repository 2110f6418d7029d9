"""A process for tests of the supervisor, which starts in a moment: it does what a file says, and notes what it did.

``FOLDER NAME ... --notify-fd FD``: the file FOLDER/NAME holds one of

serve            says that it serves, and drains at once when it is told to
patient          ends at the second SIGTERM
deaf             says that it serves, and hears no signal
load             is never ready
fail STATUS WHY  ends with that status and those last words

and FOLDER/events gets a line for all that happens: ``NAME start PID``, ``NAME ready``, ``NAME term``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    does, *rest = (folder / name).read_text().split(maxsplit=2)
    note = os.open(folder / "events", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def event(*words: object) -> None:
        os.write(note, (" ".join(map(str, (name, *words))) + "\n").encode())

    terms = 0

    def term(*_: object) -> None:
        nonlocal terms
        terms += 1
        event("term")

    event("start", os.getpid())
    if does == "fail":
        sys.stderr.write(f"error: {rest[1]}\n")
        sys.exit(int(rest[0]))
    handlers = {"deaf": signal.SIG_IGN, "load": signal.SIG_DFL}
    signal.signal(signal.SIGTERM, handlers.get(does, term))
    sys.stderr.write(f"{name} has come up, NOTIFY_SOCKET is {os.environ.get('NOTIFY_SOCKET')}\n")
    sys.stderr.write('{"level":"info","message":"as JSON"}\n')
    if does != "load":
        event("ready")
        socket.socket(fileno=int(sys.argv[-1])).send(b"READY=1")
    while terms < (2 if does == "patient" else 1):
        time.sleep(0.01)


if __name__ == "__main__":
    main()
