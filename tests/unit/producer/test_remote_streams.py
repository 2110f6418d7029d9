"""The chunks of an object in a remote store as a file."""

from __future__ import annotations

import io

from producer.sources.remote import _Stream


def test_an_empty_chunk_does_not_end_a_file() -> None:
    assert io.BufferedReader(_Stream(iter([b"", b"one\n", b"", b"two\n", b""]))).readlines() == [b"one\n", b"two\n"]
