"""Finding stop strings in text that arrives token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What decoders write for bytes that are no UTF-8 (yet): the character may still be completed by later tokens.
_REPLACEMENT = "\ufffd"

#: A character has at most 4 bytes, so pending tokens beyond this number will never become one.
_MAX_PENDING = 8


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """``text`` up to the first of ``stops`` in it; None if there is none."""
    found = [at for at in map(text.find, stops) if at >= 0]
    return text[: min(found)] if found else None


class StopFinder:
    """Looks for stop strings in a growing text, also where one spans several tokens.

    Each token is decoded about once. A hit is a hint, found in text that was decoded in pieces: the caller
    decodes the whole and cuts it with ``cut_at_stop``.
    """

    def __init__(self, stops: Sequence[str], decode: Callable[[list[int]], str]) -> None:
        self._stops = stops
        self._decode = decode
        self._keep = max(map(len, stops)) - 1
        self._tail = ""
        self._pending: list[int] = []

    def push(self, token: int) -> bool:
        """Take the next token; True if the text now seems to contain a stop string that ends in it."""
        self._pending.append(token)
        text = self._tail + self._decode(self._pending)
        found = any(stop in text for stop in self._stops)
        if not text.endswith(_REPLACEMENT) or len(self._pending) >= _MAX_PENDING:
            self._tail = text[-self._keep :] if self._keep else ""
            self._pending.clear()
        return found
