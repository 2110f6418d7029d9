"""Which models an operator lets a worker load: PROMPTMILL_ALLOWED_MODELS."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path

from jobs.errors import InputError

_SETTING = "PROMPTMILL_ALLOWED_MODELS"


def check_allowed(source: str, allowed: str | None) -> str:
    """What to load for ``source``, a folder or a hub id: of a folder the real path, where there is a list.

    ``allowed`` are patterns with ``*``, ``?`` and ``[...]``, separated by commas, for real paths and hub ids; ``*``
    takes in slashes. Links and ``..`` are followed first, so a link in an allowed folder leads no further than the
    folder does. None allows everything. Raises InputError.
    """
    if allowed is None:
        return source
    patterns = [pattern.strip() for pattern in allowed.split(",") if pattern.strip()]
    if not patterns:
        raise InputError(f"{_SETTING} holds commas alone: name what may be loaded, or unset it")
    folder = Path(os.path.expanduser(source))
    # As load_model does it: what is there is a path, all else an id of the hub.
    is_path = folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1
    meant = os.path.realpath(folder) if is_path else source
    if any(fnmatchcase(meant, _real(pattern) if is_path else pattern) for pattern in patterns):
        return meant
    led = f" (which is {meant})" if meant != source else ""
    raise InputError(f"--model: {source}{led} is not allowed here: {_SETTING} allows {', '.join(patterns)}")


def _real(pattern: str) -> str:
    """A pattern of paths whose folders, up to the first wildcard, are the real ones: /models may be a link itself."""
    plain = min((place for mark in "*?[" if (place := pattern.find(mark)) >= 0), default=len(pattern))
    if not pattern.startswith(("/", "~")):
        return pattern
    if plain == len(pattern):
        return os.path.realpath(os.path.expanduser(pattern))
    folder, _, name = pattern[:plain].rpartition("/")
    return f"{os.path.realpath(os.path.expanduser(folder or '/')).rstrip('/')}/{name}{pattern[plain:]}"
