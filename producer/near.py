"""Finds what was perhaps meant by a name that nothing has."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from itertools import islice

#: Names that are looked at: comparing takes some ten microseconds each.
_MOST = 5_000


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``, did you mean 'x'?`` with the name that is nearest to ``given``; empty where none is near."""
    names = list(islice(known, _MOST))
    folded = {name.lower(): name for name in reversed(names)}
    close = difflib.get_close_matches(given.lower(), folded, n=1, cutoff=0.7)
    begun = [name for name in names if len(given) > 3 and name.startswith(given)]
    found = folded[close[0]] if close else begun[0] if len(begun) == 1 else None
    return f", did you mean {found!r}?" if found is not None and found != given else ""
