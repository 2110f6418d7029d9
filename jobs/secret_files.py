"""Secrets belong into files: containers mount them, and neither ``ps`` nor ``docker inspect`` shows them.

URIs of stores and sources are shown to people and kept in Redis, so they must hold none.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import parse_qs, quote

from jobs.errors import InputError

#: Bytes of the first line; what is longer is some other file.
_LONGEST = 65_536


def read_secret(setting: str, path: str) -> str:
    """The first line of the file that ``setting`` names, without its end. Raises InputError."""
    try:
        with Path(os.path.expanduser(path)).open("rb") as file:
            line = file.readline(_LONGEST).decode("utf-8").rstrip("\r\n")
    except OSError as error:
        raise InputError(f"{setting}: {path} cannot be read: {error.strerror}") from error
    except ValueError:
        # The cause would quote some of it.
        raise InputError(f"{setting}: the first line of {path} is not UTF-8 text") from None
    if line.startswith("\ufeff"):
        raise InputError(f"{setting}: {path} begins with a byte order mark: save it as UTF-8 without one")
    if not line.strip():
        raise InputError(f"{setting}: the first line of {path} is empty, and is to hold the secret")
    return line


def with_password(url: str, password: str) -> str | None:
    """``url`` with a password, percent-encoded, after its user's name; None if it has one already."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url  # no URL at all: who connects says so
    end = min((place for mark in "/?#" if (place := rest.find(mark)) >= 0), default=len(rest))
    login, _, host = rest[:end].rpartition("@")
    user, _, own = login.partition(":")
    if own or "password" in parse_qs(rest.partition("?")[2]):
        return None
    return f"{scheme}://{user}:{quote(password, safe='')}@{host}{rest[end:]}"


def refuse_secrets(what: str, uri: str, instead: str, *, query: bool) -> None:
    """Raises InputError, which does not show it, for a URI with a password, or a ``query``: these are signatures."""
    rest = uri.partition("://")[2]
    if ":" in rest.partition("/")[0].rpartition("@")[0] or (query and "?" in rest):
        raise InputError(f"{what}: the URI holds a password or a signature, and URIs are shown: {instead}")
