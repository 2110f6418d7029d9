"""Telling whoever supervises this process how it is, in the words of sd_notify(3).

systemd names a socket in NOTIFY_SOCKET; our own supervisor hands down a socket that is open already.
"""

from __future__ import annotations

import os
import socket

#: The messages that both sides know.
READY, STOPPING = "READY=1", "STOPPING=1"


class Notifier:
    """Sends messages to ``channel``, a connected datagram socket; without one it does nothing."""

    def __init__(self, channel: socket.socket | None = None) -> None:
        self._channel = channel
        self._ready = False

    @classmethod
    def to_supervisor(cls, fd: int | None = None) -> Notifier:
        """To the socket ``fd``, or else to systemd if it asked for it. The processes of this one hear nothing of it."""
        address = os.environ.pop("NOTIFY_SOCKET", None)
        if fd is not None:
            return cls(socket.socket(fileno=fd))
        if address is None or address[:1] not in ("/", "@"):
            return cls()
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            # An "@" stands for the zero byte of an abstract address.
            channel.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)
        except OSError:
            channel.close()
            return cls()
        return cls(channel)

    def ready(self, *more: str) -> None:
        """From now on it does what it is there for. Said once."""
        if not self._ready:
            self._ready = True
            self.tell(READY, *more)

    def tell(self, *messages: str) -> None:
        if self._channel is None:
            return
        try:
            self._channel.send("\n".join(messages).encode(), socket.MSG_DONTWAIT)
        except OSError:
            # Whoever supervises has gone, or does not listen: the work goes on.
            return

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
