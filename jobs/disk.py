"""A store on a local disk: what it needs of the file system, besides what obstore does."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from datetime import datetime
from pathlib import Path

from obstore.store import LocalStore

from jobs.errors import NotFoundError, StoreUnavailableError

#: What obstore writes a file as before it has its name.
_UNFINISHED = re.compile(r"#\d+$")


def write_new(path: Path, content: bytes) -> bool:
    """Write a file under its own name; False if it is there. A fifth of the time of a file that has to be whole."""
    try:
        try:
            _create_file(path, content)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            _create_file(path, content)
        return True
    except FileExistsError:
        return False


def _create_file(path: Path, content: bytes) -> None:
    with open(path, "xb", buffering=0) as file:
        rest = memoryview(content)
        while rest:  # a nearly full disk takes a part, then none
            rest = rest[file.write(rest) :]


def sync_files(*paths: Path) -> None:
    """Force files and folders to the disk: the ledger must not know of a part that power loss can take."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_file_system(folder: Path) -> bool:
    """Force all that was written to the file system of ``folder`` to the disk; False where that cannot be done.

    Linux has a call for it, which takes a fraction of the time of a call for each of thousands of files.
    """
    if sys.platform != "linux":
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            return bool(ctypes.CDLL(None).syncfs(handle) == 0)
        finally:
            os.close(handle)
    except (AttributeError, OSError):  # a C library without it, or a folder that cannot be opened: as elsewhere, then
        return False


def local_backend(root: Path, *, create: bool) -> LocalStore:
    """A LocalStore at ``root``. Raises StoreUnavailableError in words that name the folder and the mend, and
    NotFoundError where there is none and none is to be made.
    """
    try:
        if root.exists() and not root.is_dir():
            raise StoreUnavailableError(f"store {root} is not a folder; set PROMPTMILL_STORE to one")
        if not root.exists() and not create:
            raise NotFoundError(f"{root} does not exist")
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        verb = "created" if create else "read"
        raise StoreUnavailableError(f"store {root} cannot be {verb}: {error.strerror}") from error
    return LocalStore(prefix=root)


def require_writable(root: Path) -> None:
    """Raises StoreUnavailableError where this user may not write into ``root``."""
    if not os.access(root, os.W_OK | os.X_OK):
        raise StoreUnavailableError(f"store {root} cannot be written: give this user write permission, or use another")


def is_no_link(root: Path, path: str, folders: dict[str, bool]) -> bool:
    """Whether neither the file nor a folder on the way is a link; ``folders`` remembers those.

    The folders at the top may be: that is how the owner of a store puts one of them on another disk.
    """
    top, _, _ = path.partition("/")
    file = root / path
    folder = str(file.parent)
    if folder not in folders:
        folders[folder] = file.parent == root or file.parent.resolve().is_relative_to((root / top).resolve())
    return folders[folder] and not file.is_symlink()


def remove_empty_folders(folder: Path) -> None:
    """Remove ``folder`` and those in it as far as they are empty."""
    for path in [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]:
        with contextlib.suppress(OSError):
            path.rmdir()


def remove_unfinished(root: Path, before: datetime) -> None:
    """Remove what obstore left of files whose writers were killed, last touched ``before`` then."""
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            if _UNFINISHED.search(path.name) and path.stat().st_mtime < before.timestamp():
                path.unlink()
