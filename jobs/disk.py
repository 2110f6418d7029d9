"""A store on a local disk: what it needs of the file system, besides what obstore does."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from obstore.store import LocalStore

from jobs.errors import NotFoundError, StoreUnavailableError


def create_file(path: Path, content: bytes) -> None:
    with open(path, "xb", buffering=0) as file:
        rest = memoryview(content)
        while rest:  # a nearly full disk takes a part, then none
            rest = rest[file.write(rest) :]


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
