"""Which format a file has, and how it is compressed: by its name, or as ``--format`` says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jobs.errors import InputError
from producer.near import did_you_mean

Kind = Literal["jsonl", "json", "csv", "tsv", "txt", "parquet", "arrow"]
Compression = Literal["gz", "zst"]

KINDS: tuple[Kind, ...] = get_args(Kind)
#: Formats whose rows have Arrow types and are read batch by batch.
ARROW_KINDS = frozenset({"parquet", "arrow"})

_SAME = {"ndjson": "jsonl", "text": "txt", "feather": "arrow", "ipc": "arrow", "pq": "parquet", "gzip": "gz",
         "zstd": "zst"}  # fmt: skip

#: Formats that are often given, and what to do about them.
_OTHERS = {
    "xlsx": "export it as .csv",
    "xls": "export it as .csv",
    "ods": "export it as .csv",
    "avro": "convert it to .parquet",
    "orc": "convert it to .parquet",
    "yaml": "convert it to .jsonl",
    "xml": "convert it to .jsonl",
    "zip": "unpack it",
    "tar": "unpack it",
    "tgz": "unpack it",
    "bz2": "unpack it with `bunzip2`, or compress it with gzip or zstd",
    "xz": "unpack it with `unxz`, or compress it with gzip or zstd",
    "lz4": "unpack it with `lz4 -d`, or compress it with gzip or zstd",
    "db": "export it as .csv or .parquet",
    "sqlite": "export it as .csv or .parquet",
}


@dataclass(frozen=True, slots=True)
class Format:
    kind: Kind
    compression: Compression | None = None


def known_format(name: str) -> Format | None:
    """The format that a file's name tells; None where it tells none."""
    endings = [_SAME.get(ending, ending) for ending in Path(name).name.lower().split(".")[1:]]
    compression = endings.pop() if endings and endings[-1] in get_args(Compression) else None
    kind = next((kind for kind in KINDS if endings and endings[-1] == kind), None)
    return Format(kind, compression) if kind else None  # type: ignore[arg-type]


def format_of(name: str, given: str | None = None) -> Format:
    """The format of the file ``name``; ``given`` is --format, which wins. Raises InputError where neither tells."""
    if given is not None:
        found = known_format(f"x.{given.lower().lstrip('.')}")
        if found is None:
            near = did_you_mean(given, (*KINDS, *_SAME))
            raise InputError(f"--format {given!r} is not known{near or ':'} use one of {', '.join(KINDS)}")
        packed = next((ending for ending in get_args(Compression) if name.lower().endswith(f".{ending}")), None)
        return Format(found.kind, found.compression or packed)
    found = known_format(name)
    if found is None:
        ending = Path(name).suffix.lower().removeprefix(".")
        todo = _OTHERS.get(ending)
        if todo:
            raise InputError(f"{name}: .{ending} files are not read: {todo}")
        raise InputError(f"{name}: the name does not tell the format: add --format {'|'.join(KINDS)}")
    return found
