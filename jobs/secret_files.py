"""Secrets belong into files: containers mount them, and neither ``ps`` nor ``docker inspect`` shows them.

URIs of stores and sources are shown to people and kept in Redis, so they must hold none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
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
    if has_password(url):
        return None
    end = _end_of_host(rest)
    login, _, host = rest[:end].rpartition("@")
    user = login.partition(":")[0]
    return f"{scheme}://{user}:{quote(password, safe='')}@{host}{rest[end:]}"


def has_password(url: str) -> bool:
    rest = url.partition("://")[2]
    login = rest[: _end_of_host(rest)].rpartition("@")[0]
    return bool(login.partition(":")[2]) or "password" in parse_qs(rest.partition("?")[2])


def _end_of_host(rest: str) -> int:
    return min((place for mark in "/?#" if (place := rest.find(mark)) >= 0), default=len(rest))


@dataclass(frozen=True, slots=True)
class RedisFiles:
    """A Redis URL of which all, or the password, is in files: whoever rotates a password replaces them."""

    #: Where the password goes, if there is no ``url_file``.
    url: str
    url_file: str | None
    password_file: str | None

    def read(self) -> str:
        """The URL as the files have it now. Raises InputError."""
        url = read_secret("PROMPTMILL_REDIS_URL_FILE", self.url_file).strip() if self.url_file else self.url
        if self.password_file is None:
            return url
        complete = with_password(url, read_secret("PROMPTMILL_REDIS_PASSWORD_FILE", self.password_file))
        if complete is None:
            raise InputError(
                "a password is in the Redis URL and in the file of PROMPTMILL_REDIS_PASSWORD_FILE: take it out of "
                "the URL (the user's name stays there), or unset the file"
            )
        return complete


class UrlFromFiles(str):
    """A URL as ``files`` had it when it was read. What connects with it asks them for the login each time."""

    files: RedisFiles

    @classmethod
    def read(cls, files: RedisFiles) -> UrlFromFiles:
        """Raises InputError."""
        url = cls(files.read())
        url.files = files
        return url


def redis_variables(url: str) -> dict[str, str]:
    """The settings of a process that is to use the same Redis; empty ones, so that a file .env does not set them."""
    files = url.files if isinstance(url, UrlFromFiles) else RedisFiles(url, None, None)
    return {
        "PROMPTMILL_REDIS_URL": "" if files.url_file else files.url,
        "PROMPTMILL_REDIS_URL_FILE": files.url_file or "",
        "PROMPTMILL_REDIS_PASSWORD_FILE": files.password_file or "",
    }


def refuse_secrets(what: str, uri: str, instead: str, *, query: bool) -> None:
    """Raises InputError, which does not show it, for a URI with a password, or a ``query``: these are signatures."""
    rest = uri.partition("://")[2]
    if ":" in rest.partition("/")[0].rpartition("@")[0] or (query and "?" in rest):
        raise InputError(f"{what}: the URI holds a password or a signature, and URIs are shown: {instead}")
