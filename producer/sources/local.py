"""Files on this machine: a path, a glob, a folder, or a dataset that was saved in one."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, TypeGuard

import orjson

from jobs.errors import InputError
from producer.near import did_you_mean
from producer.sources.places import READ_BLOCK, Place, is_data

#: What `datasets.Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in their folders.
_DATASET, _DATASET_DICT = "state.json", "dataset_dict.json"


def local_places(path: str) -> list[Place]:
    """The files that ``path`` means, in the order in which they are read. Raises InputError."""
    return [_local(name) for name in _names(path)]


def _names(path: str) -> list[str]:
    try:
        if os.path.isdir(path):
            return _files_of_folder(path)
        if os.path.exists(path) or not glob.has_magic(path):
            return [path]
        names = _each_once(name for name in glob.glob(path, recursive=True) if not os.path.isdir(name))
    except ValueError as error:
        raise InputError(f"{path!r}: cannot be a path: {error}") from error
    if not names:
        raise InputError(f"{path}: no file matches")
    return names


def _each_once(names: Iterable[str]) -> list[str]:
    """The files, sorted; those that a link to a folder shows a second time, or without end, once."""
    found: dict[tuple[str, str], str] = {}
    for name in sorted(names, key=lambda name: (name.count(os.sep), name)):
        found.setdefault((os.path.realpath(os.path.dirname(name)), os.path.basename(name)), name)
    return sorted(found.values())


def _files_of_folder(folder: str) -> list[str]:
    """The files of a dataset on disk, or all files of a folder whose format is known. Raises InputError."""
    root = Path(folder)
    if (root / _DATASET_DICT).is_file():
        return _files_of_folder(str(_only_split(root)))
    if (root / _DATASET).is_file():
        return [str(root / name) for name in _data_files(root)]
    data = (path for path in root.rglob("*") if is_data(path.relative_to(root).parts) and path.is_file())
    names = _each_once(map(str, data))
    if not names:
        raise InputError(f"{folder} is a directory without a file that can be read: name a file, or a glob")
    return names


def _only_split(root: Path) -> Path:
    """The split of a saved `DatasetDict` that has but one. Raises InputError, naming them, where there are several."""
    splits = [name for name in _json(root / _DATASET_DICT, "splits") if _is_plain(name)]
    if not splits:
        raise InputError(f"{root / _DATASET_DICT} names no splits: save the dataset again with save_to_disk")
    if len(splits) > 1:
        raise InputError(f"{root} holds several splits ({', '.join(splits)}): name one, for example {root / splits[0]}")
    return root / splits[0]


def _is_plain(name: object) -> TypeGuard[str]:
    """Whether ``name`` names something in a folder, and nothing elsewhere."""
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _data_files(root: Path) -> list[str]:
    files = [item.get("filename") for item in _json(root / _DATASET, "_data_files") if isinstance(item, dict)]
    if not files or not all(map(_is_plain, files)):
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
        raise InputError(f"{path}: no such file{_near(path)}") from error
    except PermissionError as error:
        raise InputError(f"{path}: no permission to read it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path!r}: cannot be a path: {error}") from error

    def opens() -> BinaryIO:
        return open(path, "rb", buffering=READ_BLOCK)

    return Place(path, opens, opens if regular else None, rereadable=regular)


def _near(path: str) -> str:
    """What is in the folder of a missing file and has nearly its name; or that there is no such folder."""
    folder, name = os.path.split(path)
    try:
        with os.scandir(folder or ".") as found:
            return did_you_mean(name, (item.name for item in found if not item.name.startswith(".")))
    except FileNotFoundError:
        return f", for there is no folder {folder}"
    except OSError:
        return ""
