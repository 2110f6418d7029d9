"""What the processes write, line by line, each with the name of its device."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime

#: Bytes of a line that is passed on before its end is seen: a progress bar has none.
_LONGEST = 65_536
#: How a process says why it ends; the supervisor says it for all of them.
_LAST_WORDS = "error: "


class Lines:
    """Cuts the bytes of a pipe into lines, and gives each to ``write``, but for the process's last words."""

    def __init__(self, fd: int, label: Callable[[str], str], write: Callable[[str], None]) -> None:
        self.fd = fd
        self._label, self._write = label, write
        self._rest = b""
        #: Why the process ends, as far as it said so.
        self.last_words = ""
        os.set_blocking(fd, False)

    def read(self) -> bool:
        """Pass on what there is; False if nothing is, now or ever."""
        try:
            content = os.read(self.fd, _LONGEST)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + content).split(b"\n")
        if len(self._rest) >= _LONGEST:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._pass_on(line)
        return bool(content)

    def finish(self) -> None:
        """The process has ended: what it left. A process of its own may still hold the pipe."""
        while self.read():
            pass
        self._pass_on(self._rest)
        self._rest = b""

    def _pass_on(self, content: bytes) -> None:
        line = content.decode(errors="replace").rstrip("\r")
        if line.startswith(_LAST_WORDS):
            self.last_words = line.removeprefix(_LAST_WORDS)
        elif line:
            self._write(self._label(line))


def labelled_text(name: str) -> Callable[[str], str]:
    return lambda line: f"[{name}] {line}"


def labelled_json(name: str) -> Callable[[str], str]:
    """Lines of JSON get one more field; what libraries write as they like becomes an object of the same form."""

    def label(line: str) -> str:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            time = datetime.now(UTC).isoformat()
            entry = {"time": time, "level": "warning", "logger": "stderr", "message": line}
        return json.dumps({**entry, "device": name}, ensure_ascii=False, separators=(",", ":"))

    return label
