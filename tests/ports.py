"""Ports for the servers of the tests."""

from __future__ import annotations

import socket
import sys

_held: list[socket.socket] = []


def free_port() -> int:
    """A port of this machine for the server that is told it, and for no other as long as this process lives.

    A socket stays bound to it. Linux lets the server bind it too, again and again, for both allow that and only one
    of them listens; to whoever asks for any port, be it for the near end of a connection, it gives others. Without
    that a port is anybody's until the server is there, and while it is away: even that of its own client, which then
    meets itself.
    """
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    own.bind(("127.0.0.1", 0))
    port = int(own.getsockname()[1])
    if sys.platform == "linux":
        _held.append(own)
    else:
        own.close()
    return port
