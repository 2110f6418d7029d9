"""A login that is read from its files for each connection: a password that is rotated needs no restart."""

from __future__ import annotations

import logging

from redis.connection import parse_url
from redis.credentials import CredentialProvider

from jobs.errors import InputError
from jobs.secret_files import RedisFiles, UrlFromFiles

_log = logging.getLogger(__name__)


class FileLogin(CredentialProvider):
    """User and password as the files of a Redis URL have them now; as they had them last where they cannot be read."""

    def __init__(self, files: RedisFiles, known: tuple[str, str]) -> None:
        self._files, self._known = files, known

    @classmethod
    def of(cls, url: str) -> FileLogin | None:
        """None for a URL that comes from no file, or has no password. Raises ValueError for one that is none."""
        if not isinstance(url, UrlFromFiles):
            return None
        known = _login(url)
        return cls(url.files, known) if known[1] else None

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """What redis-py sends with AUTH. Never raises: that would not count as a connection that failed."""
        try:
            login = _login(self._files.read())
        except (InputError, ValueError) as error:
            # ValueError may quote a part of the password.
            reason = f": {error}" if isinstance(error, InputError) else ""
            _log.warning("the login of Redis cannot be read, and stays as it was%s", reason)
        else:
            if login != self._known:
                _log.info("the login of Redis has changed")
            self._known = login
        user, password = self._known
        return (user, password) if user else (password,)


def _login(url: str) -> tuple[str, str]:
    options = parse_url(url)  # type: ignore[no-untyped-call]
    return options.get("username", ""), options.get("password", "")
