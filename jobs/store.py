"""The store: files on local disk, S3, GCS, Azure or in memory, through obstore.

The one primitive that everything rests on is put-if-absent: of any number of writers of a name exactly one
wins, and what it wrote never changes.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import obstore
import orjson
from obstore.exceptions import BaseError
from obstore.exceptions import NotFoundError as ObjectNotFoundError
from obstore.store import MemoryStore, from_url

from jobs.calls import RETRY, Calls
from jobs.disk import (
    is_no_link,
    local_backend,
    remove_empty_folders,
    remove_unfinished,
    require_writable,
    sync_file_system,
    sync_files,
    write_new,
)
from jobs.errors import (
    ForeignStoreError,
    InputError,
    NotFoundError,
    StoreUnavailableError,
    WrongStoreError,
    first_line,
)
from jobs.layout import STORE_FILE
from jobs.secret_files import refuse_secrets

FORMAT_VERSION = 1

#: URI schemes of remote stores.
REMOTE_SCHEMES = ("s3", "gs", "az", "abfs", "abfss", "http", "https")

#: Instead of a password in a URI.
_CREDENTIALS = "set the variables of its kind, such as AWS_SECRET_ACCESS_KEY or AZURE_STORAGE_SAS_KEY"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file as a listing shows it; ``size`` in bytes."""

    path: str
    size: int
    modified: datetime


class Store:
    """Files under one root. Paths are relative to it, with ``/``; see jobs/layout.py.

    Every method raises StoreUnavailableError where the store cannot be reached or refuses.
    """

    def __init__(self, backend: Any, uri: str, root: Path | None) -> None:
        self._backend = backend
        self._calls = Calls(backend, uri, local=root is not None)
        #: How people and tools name the root: an absolute path, or the URI.
        self.uri = uri
        self._root = root
        self._id: str | None = None

    @classmethod
    def open(cls, uri: str, *, create: bool = False, wanted: str | None = None) -> Store:
        """The store at ``uri``, recognised by its ``_promptmill.json``; its file says which store it is.

        With ``create`` an absent or empty place becomes a store, unless ``wanted`` is the id of the one that has to be
        there: else WrongStoreError is raised. Raises ForeignStoreError where the place holds something else, InputError
        for a URI of no known kind, StoreUnavailableError otherwise.
        """
        try:
            store = cls._connect(uri, create=create and wanted is None)
        except NotFoundError:
            root = str(_folder(uri))
            raise (_wrong(root, wanted, "there is no such folder") if wanted else _no_store(root)) from None
        store._identify(create=create, wanted=wanted)
        return store

    @classmethod
    def _connect(cls, uri: str, *, create: bool) -> Store:
        scheme, separator, _ = uri.partition("://")
        if any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in uri):
            raise InputError(f"store {uri!r}: the name is not UTF-8, or holds a NUL")
        if separator and scheme == "memory":
            return cls(MemoryStore(), uri, None)
        if separator and scheme in REMOTE_SCHEMES:
            refuse_secrets("the store (PROMPTMILL_STORE, --store)", uri, _CREDENTIALS, query=True)
            try:
                return cls(from_url(uri.rstrip("/"), retry_config=RETRY), uri.rstrip("/"), None)
            except (BaseError, ValueError) as error:
                raise StoreUnavailableError(f"store {uri}: {first_line(error)}") from error
        if separator and scheme != "file":
            raise InputError(f"store {uri}: unknown scheme {scheme!r}; use a folder, s3://, gs:// or az://")
        root = _folder(uri)
        return cls(local_backend(root, create=create), str(root), root)

    @property
    def id(self) -> str:
        """The random id that this store was given at its creation."""
        if self._id is None:
            raise StoreUnavailableError(f"store {self.uri} was not opened")
        return self._id

    @property
    def is_local(self) -> bool:
        return self._root is not None

    @property
    def root(self) -> Path | None:
        """The folder of a local store, None for others."""
        return self._root

    def locate(self, path: str) -> str:
        """``path`` as a user writes it: an absolute file name or a URI."""
        return self._calls.locate(path)

    def put_if_absent(self, path: str, content: bytes, *, sync: bool = True) -> bool:
        """Write ``path`` unless it exists; True if this call wrote it.

        On a local disk the file and its folder are on the disk when this returns, whoever wrote it; without ``sync``
        only after ``sync_folder``, and a writer that is killed may leave a part of it: for files that nobody reads
        before all of them are there. After a time-out of a remote store the call is repeated; if it then finds its own
        bytes it has won.
        """
        if self._root is not None and self._id is not None:
            # Folders are made as they are needed. Those of a store that is not mounted would be on another disk.
            self.require()
        if self._root is not None and not sync:
            with self._on_disk():
                return write_new(self._root / path, content)
        won = self._calls.put_new(path, content)
        if self._root is not None:
            self._sync(self._root / path, (self._root / path).parent)
        return won

    def sync_folder(self, folder: str) -> None:
        """Have all files that were put right into ``folder`` on the disk: those of a remote store are safe by then."""
        if self._root is None or not (self._root / folder).is_dir():
            return
        if not sync_file_system(self._root / folder):
            paths = [self._root / item.path for item in self.list(folder)]
            above = [path for path in (self._root / folder).parents if path.is_relative_to(self._root)]
            self._sync(*paths, self._root / folder, *above)

    def get(self, path: str) -> bytes:
        """The whole content. Raises NotFoundError."""
        return self._calls.get(path)

    def exists(self, path: str) -> bool:
        return self._calls.exists(path)

    def list(self, prefix: str) -> Iterator[StoredFile]:
        """All files below the folder ``prefix``, in no particular order.

        On a local disk without what a link leads to: it may be anybody's, and what is listed may come to be deleted.
        """
        folders: dict[str, bool] = {}
        try:
            for chunk in obstore.list(self._backend, prefix=prefix):
                for item in chunk:
                    if self._root is None or is_no_link(self._root, item["path"], folders):
                        yield StoredFile(item["path"], item["size"], item["last_modified"])
        except (ObjectNotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise StoreUnavailableError(f"store {self.uri}: {first_line(error)}") from error

    def delete(self, paths: Iterable[str]) -> None:
        """Remove files; those that are gone already are no error."""
        for path in paths:
            self._calls.delete(path)

    def remove_empty_folders(self, prefix: str) -> None:
        """Remove the folder ``prefix`` and those in it as far as they are empty: only a local disk has any."""
        if self._root is not None:
            remove_empty_folders(self._root / prefix)

    def remove_unfinished(self, before: datetime) -> None:
        """Remove what writers left that were killed in the middle of a file, last touched ``before`` then.

        Only a local disk keeps such files (``name#1``); listings do not show them.
        """
        if self._root is not None:
            remove_unfinished(self._root, before)

    def free_bytes(self) -> int | None:
        """Bytes that this user may still write on the disk of a local store; None of others, which do not say."""
        if self._root is None:
            return None
        with self._on_disk():
            return shutil.disk_usage(self._root).free

    def require(self) -> None:
        """Raises StoreUnavailableError where the store itself is gone: a volume that is not mounted, say.

        To be asked before a file that is missing counts as lost. ForeignStoreError where another store is in its place.
        """
        try:
            found, _ = self._read_record(self.get(STORE_FILE))
        except NotFoundError:
            raise StoreUnavailableError(f"store {self.uri} is gone: {STORE_FILE} is not there any more") from None
        if self._id is not None and found != self._id:
            raise ForeignStoreError(
                f"store {self.uri} is another one by now (id {found}, it was {self._id}): put back the one that was "
                "there, or start this program again"
            )

    def probe(self) -> None:
        """Try put-if-absent for real: raises StoreUnavailableError if the endpoint ignores it."""
        path = f"_probe/{uuid.uuid4().hex}"
        first, second = self.put_if_absent(path, b"1"), self.put_if_absent(path, b"2")
        kept = self.get(path)
        self.delete([path])
        if not first or second or kept != b"1":
            raise StoreUnavailableError(
                f"store {self.uri} ignores put-if-absent (If-None-Match): results could be overwritten; "
                "use an endpoint that honours it (AWS S3, GCS, Azure, MinIO, or a local folder)"
            )

    def _identify(self, *, create: bool, wanted: str | None) -> None:
        try:
            content = self.get(STORE_FILE)
        except NotFoundError:
            if wanted is not None:
                raise _wrong(self.uri, wanted, f"{STORE_FILE} is not there") from None
            try:
                content = self._found(create=create)
            except NotFoundError as error:
                raise ForeignStoreError(f"store {self.uri}: {STORE_FILE} is no file") from error
        self._id, version = self._read_record(content)
        if wanted not in (None, self._id):
            raise _wrong(self.uri, wanted, f"another one is, {self._id}")
        if create and self._root is not None:
            require_writable(self._root)
        if version != FORMAT_VERSION:
            raise ForeignStoreError(
                f"store {self.uri} has format {version}, this program knows {FORMAT_VERSION}: upgrade promptmill"
            )

    def _read_record(self, content: bytes) -> tuple[str, int]:
        """The id and the format that a ``_promptmill.json`` names. Raises ForeignStoreError."""
        try:
            record = orjson.loads(content)
            return str(record["store_id"]), int(record["version"])
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ForeignStoreError(
                f"store {self.uri}: {STORE_FILE} is not one of Promptmill's; set PROMPTMILL_STORE to another place"
            ) from error

    def _found(self, *, create: bool) -> bytes:
        """Make this place a store; the record that won if several try at once."""
        other = next((item for item in self.list("") if not item.path.startswith("_probe/")), None)
        if other is not None and not self.exists(STORE_FILE):
            raise ForeignStoreError(
                f"store {self.uri} holds other files ({other.path}) and no {STORE_FILE}: it belongs to something "
                "else; set PROMPTMILL_STORE (or --store) to an empty or new folder"
            )
        if not create:
            raise _no_store(self.uri)
        if self._root is not None:
            require_writable(self._root)
        self.probe()
        record = {"store_id": secrets.token_hex(8), "version": FORMAT_VERSION}
        self.put_if_absent(STORE_FILE, orjson.dumps(record) + b"\n")
        return self.get(STORE_FILE)

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailableError(f"store {self.uri}: {error.strerror or error}") from error

    def _sync(self, *paths: Path) -> None:
        try:
            sync_files(*paths)
        except OSError as error:
            raise StoreUnavailableError(f"store {self.uri}: {error}") from error


def _folder(uri: str) -> Path:
    """That of a local store. Raises InputError for the home of a user who is none."""
    folder = os.path.expanduser(uri.removeprefix("file://"))
    if folder.startswith("~"):
        raise InputError(f"store {uri}: there is no such home folder; a folder of that name is ./{folder}")
    return Path(folder).absolute()


def _no_store(place: str) -> StoreUnavailableError:
    return StoreUnavailableError(
        f"no Promptmill store at {place}; check PROMPTMILL_STORE (or --store); submit and run create one"
    )


def _wrong(place: str, wanted: str | None, found: str) -> WrongStoreError:
    return WrongStoreError(
        f"store {place}: the one with the id {wanted} has to be there (PROMPTMILL_STORE_ID), but {found}: mount it, or "
        "correct PROMPTMILL_STORE (or --store); for any other store, or a new one, unset PROMPTMILL_STORE_ID"
    )
