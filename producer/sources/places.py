"""Which files a SOURCE means: a path, a glob, a folder, stdin, or the URI of any of these in an object store."""

from __future__ import annotations

import glob
import gzip
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import orjson

from jobs.errors import InputError, Problem, SourceError
from producer.sources.formats import Compression, known_format

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdFile
else:
    from backports.zstd import ZstdFile

READ_BLOCK = 1 << 20

#: What `datasets.Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in their folders.
_DATASET, _DATASET_DICT = "state.json", "dataset_dict.json"


@dataclass(frozen=True, slots=True)
class Place:
    """One file of a source: how people call it, and how to open its bytes.

    ``open_seekable`` opens it as the readers of Parquet need it; None where that cannot be done. ``rereadable``: it
    may be opened more than once.
    """

    name: str
    open: Callable[[], BinaryIO]
    open_seekable: Callable[[], BinaryIO] | None = None
    rereadable: bool = True


def find_places(source: str, stdin: BinaryIO | None = None) -> list[Place]:
    """The files that ``source`` means, in the order in which they are read.

    Raises InputError where there are none or one cannot be read, UnavailableError where an object store cannot be
    reached.
    """
    if source == "-":
        stream = stdin or sys.stdin.buffer
        return [Place("stdin", lambda: stream, rereadable=False)]
    if "://" in source and not source.startswith("file://"):
        # Imported late: few sources are remote.
        from producer.sources.remote import remote_places

        return remote_places(source)
    path = source.removeprefix("file://")
    return [_local(name) for name in _local_names(path)]


def _local_names(path: str) -> list[str]:
    try:
        if os.path.isdir(path):
            return _files_of_folder(path)
        if os.path.exists(path) or not glob.has_magic(path):
            return [path]
        names = sorted(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
    except ValueError as error:
        raise InputError(f"{path!r}: cannot be a path: {error}") from error
    if not names:
        raise InputError(f"{path}: no file matches")
    return names


def _files_of_folder(folder: str) -> list[str]:
    """The files of a dataset on disk, or all files of a folder whose format is known. Raises InputError."""
    root = Path(folder)
    if (root / _DATASET_DICT).is_file():
        return _files_of_folder(str(_only_split(root)))
    if (root / _DATASET).is_file():
        return [str(root / name) for name in _data_files(root)]
    # Hidden files and those of other programs, such as _SUCCESS, are no data.
    names = sorted(str(path) for path in root.rglob("*") if path.is_file() and _is_data(path.relative_to(root)))
    if not names:
        raise InputError(f"{folder} is a directory without a file that can be read: name a file, or a glob")
    return names


def _is_data(path: Path) -> bool:
    return not any(part.startswith((".", "_")) for part in path.parts) and known_format(path.name) is not None


def _only_split(root: Path) -> Path:
    """The split of a saved `DatasetDict` that has but one. Raises InputError, naming them, where there are several."""
    splits = _json(root / _DATASET_DICT, "splits")
    if len(splits) != 1:
        shown = ", ".join(map(str, splits)) or "none"
        example = root / str(splits[0] if splits else "train")
        raise InputError(f"{root} holds several splits ({shown}): name one, for example {example}")
    return root / str(splits[0])


def _data_files(root: Path) -> list[str]:
    files = [item.get("filename") for item in _json(root / _DATASET, "_data_files") if isinstance(item, dict)]
    if not files or not all(isinstance(name, str) and Path(name).name == name for name in files):
        raise InputError(f"{root / _DATASET} names no data files: save the dataset again with save_to_disk")
    return [str(name) for name in files]


def _json(path: Path, member: str) -> list[object]:
    try:
        found = orjson.loads(path.read_bytes())[member]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read: save the dataset again with save_to_disk") from error
    return found if isinstance(found, list) else []


def _local(path: str) -> Place:
    """Raises InputError, in plain words, for what cannot be opened; before anything of the source is read."""
    try:
        # What is no file, such as a pipe, is opened once only, by the reader.
        regular = stat.S_ISREG(os.stat(path).st_mode)
        if regular:
            open(path, "rb").close()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path!r}: cannot be a path: {error}") from error

    def opens() -> BinaryIO:
        return open(path, "rb", buffering=READ_BLOCK)

    return Place(path, opens, opens if regular else None, rereadable=regular)


@contextmanager
def opened(place: Place, compression: Compression | None, *, seekable: bool = False) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked. Where they have to be ``seekable`` and are not, they pass through the disk.

    Raises SourceError where the file cannot be opened; reading may raise OSError, EOFError and what
    ``producer.sources.lines.DAMAGED`` names.
    """
    spooled = seekable and (compression is not None or place.open_seekable is None)
    opens = place.open if spooled or not seekable else place.open_seekable or place.open
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(opens())
        except OSError as error:
            raise SourceError([Problem(place.name, None, f"cannot be read: {error.strerror or error}")]) from error
        if compression == "gz":
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=stream))
            stream = cast(BinaryIO, stack.enter_context(io.BufferedReader(unpacked, READ_BLOCK)))
        elif compression == "zst":
            stream = cast(BinaryIO, stack.enter_context(io.BufferedReader(ZstdFile(stream), READ_BLOCK)))
        if spooled:
            spool = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(stream, spool, READ_BLOCK)
            spool.seek(0)
            stream = cast(BinaryIO, spool)
        yield stream
