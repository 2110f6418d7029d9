"""A TCP proxy that spoils the connections through it: cuts, delays or silences them."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Literal

#: pass      all bytes, as they come
#: silent    connections are taken and bytes swallowed: neither side hears of the other (a cable that was pulled)
#: refuse    connections are closed at once; those that are open are reset
#: slow      RATE bytes a second in each direction
#: cut       a connection is reset in the middle of the next reply of the server
Mode = Literal["pass", "silent", "refuse", "slow", "cut"]

#: Bytes a second of ``slow``.
RATE = 1024

_CHUNK = 65_536


@dataclass(eq=False)
class Proxy:
    """Takes connections on ``port`` of this machine and makes one to ``target`` for each. Close it when done."""

    target: tuple[str, int]
    mode: Mode = "pass"
    #: Connections taken, and replies cut, so far.
    taken: int = 0
    cuts: int = 0
    _open: set[socket.socket] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def use(self, mode: Mode) -> None:
        """From now on. ``refuse`` resets what is open."""
        self.mode = mode
        if mode == "refuse":
            self.reset()

    def reset(self) -> None:
        """Reset all open connections; new ones are taken as ``mode`` says."""
        for end in list(self._open):
            _reset(end)

    def close(self) -> None:
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.taken += 1
            if self.mode == "refuse":
                _reset(client)
                continue
            try:
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                _reset(client)
                continue
            server.settimeout(None)
            self._open |= {client, server}
            for source, sink, replies in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, replies), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while content := source.recv(RATE // 8 if self.mode == "slow" else _CHUNK):
                if self.mode == "silent":
                    continue
                if self.mode == "slow":
                    time.sleep(len(content) / RATE)
                if self.mode == "cut" and replies:
                    sink.sendall(content[: len(content) // 2])
                    self.cuts += 1
                    break
                sink.sendall(content)
        for end in (source, sink):
            self._open.discard(end)
            _reset(end)


def _reset(end: socket.socket) -> None:
    """Close a socket so that the other side sees a reset, not an end."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end.shutdown(socket.SHUT_RDWR)
    end.close()
