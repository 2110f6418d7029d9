"""What ends a benchmark, or one contender of it, with a sentence instead of a traceback."""

from __future__ import annotations


class BenchError(Exception):
    """Raised when the benchmark cannot do what it was asked for; the message is for the user."""


class WrongLengths(BenchError):
    """Raised when a contender generated another number of tokens than it was asked for."""
