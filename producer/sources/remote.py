"""Files in object stores, and behind HTTP: s3://, gs://, az:// and https://, through obstore."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from glob import has_magic
from typing import Any, BinaryIO, cast

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import from_url

from jobs.calls import RETRY
from jobs.errors import InputError, StoreUnavailableError, first_line
from jobs.secret_files import refuse_secrets
from jobs.store import REMOTE_SCHEMES
from producer.sources.places import READ_BLOCK, Place, is_data


def remote_places(uri: str) -> list[Place]:
    """The objects that ``uri`` means: one, those that a glob matches, or those below a prefix that ends in ``/``.

    Raises InputError where there are none, StoreUnavailableError where the store cannot be reached.
    """
    scheme, _, rest = uri.partition("://")
    if scheme not in REMOTE_SCHEMES:
        raise InputError(f"{uri}: unknown scheme {scheme!r}: use a path, s3://, gs://, az:// or https://")
    web = scheme in ("http", "https")
    refuse_secrets("the source", uri, "download it, or pipe it in with '-'", query=web)
    host, _, key = rest.partition("/")
    base = f"{scheme}://{host}"
    if not host:
        raise InputError(f"{uri}: names no bucket or host")
    if web and (has_magic(key) or not key or key.endswith("/")):
        raise InputError(f"{uri}: over HTTP only single files are read: download it, or pipe it in with '-'")
    options: Any = {"client_options": {"allow_http": True}} if scheme == "http" else {}
    try:
        store = _store(base, uri, options)
        keys = _keys(store, key, uri)
    except (BaseError, ValueError, OSError) as error:
        raise StoreUnavailableError(f"{uri}: {first_line(error)}") from error
    # Not every web server gives parts of a file, and few say so.
    return [
        Place(f"{base}/{found}", partial(_open, store, found), None if web else partial(_open_seekable, store, found))
        for found in keys
    ]


def _store(base: str, uri: str, options: Any) -> Any:
    try:
        return from_url(base, retry_config=RETRY, **options)
    except ValueError as error:
        raise InputError(f"{uri}: cannot be a URI: {first_line(error)}") from error


def _keys(store: Any, key: str, uri: str) -> list[str]:
    if has_magic(key):
        prefix = key[: min(key.index(mark) for mark in "*?[" if mark in key)].rpartition("/")[0]
        return _listed(store, prefix, partial(_matches, key), f"{uri}: no file matches")
    if not key or key.endswith("/"):

        def wanted(found: str) -> bool:
            return is_data(found.removeprefix(key).split("/"))

        return _listed(store, key.rstrip("/"), wanted, f"{uri}: holds no file that can be read")
    try:
        obstore.head(store, key)
    except (NotFoundError, FileNotFoundError) as error:
        raise InputError(f"{uri}: no such file") from error
    return [key]


def _listed(store: Any, prefix: str, wanted: Callable[[str], bool], otherwise: str) -> list[str]:
    keys = sorted(
        item["path"] for chunk in obstore.list(store, prefix=prefix or None) for item in chunk if wanted(item["path"])
    )
    if not keys:
        raise InputError(otherwise)
    return keys


def _matches(pattern: str, key: str) -> bool:
    """Whether a glob matches, ``*`` staying within a folder and ``**`` passing through any number of them."""
    return _match_parts(pattern.split("/"), key.split("/"))


def _match_parts(patterns: list[str], parts: list[str]) -> bool:
    if not patterns:
        return not parts
    if patterns[0] == "**":
        return any(_match_parts(patterns[1:], parts[skipped:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _match_parts(patterns[1:], parts[1:])


def _open(store: Any, key: str) -> BinaryIO:
    """From its beginning to its end, in one request."""
    with _as_os_error():
        stream = obstore.get(store, key).stream(min_chunk_size=READ_BLOCK)
    return cast(BinaryIO, io.BufferedReader(_Stream(iter(stream)), READ_BLOCK))


def _open_seekable(store: Any, key: str) -> BinaryIO:
    with _as_os_error():
        reader = obstore.open_reader(store, key, buffer_size=READ_BLOCK)
    return cast(BinaryIO, io.BufferedReader(_Object(reader), READ_BLOCK))


@contextmanager
def _as_os_error() -> Iterator[None]:
    """What fails is an OSError, as with Python's own files."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise OSError(first_line(error)) from error


class _Stream(io.RawIOBase):
    """The chunks of an object as a file that is read from its beginning."""

    def __init__(self, chunks: Iterator[Any]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            with _as_os_error():
                chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(bytes(chunk))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Object(io.RawIOBase):
    """An object of a store as a file of which any part can be read."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self._reader.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def readinto(self, buffer: Any) -> int:
        with _as_os_error():
            content = self._reader.read(len(buffer))
        buffer[: len(content)] = bytes(content)
        return len(content)
