"""Looking into a model's folder without loading it: are its safetensors whole, and what identifies them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from jobs.errors import ModelError

#: A safetensors header longer than this is no header: https://github.com/huggingface/safetensors#format
_MAX_HEADER = 100_000_000


def safetensors_of(folder: Path) -> list[Path]:
    """The weight files of the folder, by its index if it has one. Raises ModelError if one is damaged."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = sorted(folder.glob("*.safetensors"))
    else:
        try:
            names = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, OSError) as error:
            raise ModelError(f"{index} is damaged: download the model again") from error
        files = [folder / name for name in sorted(names)]
    for file in files:
        read_header(file)
    return files


def read_header(file: Path) -> bytes:
    """The JSON header of a safetensors file, after a check that the file is as long as the header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > min(size, _MAX_HEADER):
                raise ValueError("its header is cut")
            header = stream.read(length)
        ends = [tensor["data_offsets"][1] for name, tensor in json.loads(header).items() if name != "__metadata__"]
        if size != (expected := 8 + length + max(ends, default=0)):
            raise ValueError(f"it has {size} bytes of {expected}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{file} is damaged or incomplete ({reason}): download the model again") from error
    return header


def content_revision(folder: Path) -> str:
    """A hash over everything in the folder that decides what the model computes, and how text becomes tokens.

    Of weights it takes the headers, the sizes and some of the bytes: a fine-tuned copy has the same shapes,
    and reading all of a large model would take minutes.
    """
    digest = hashlib.sha256()
    settings = [file for pattern in ("*.json", "*.jinja", "*.model", "*.txt") for file in folder.glob(pattern)]
    for file in sorted(settings):
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    for weights in [*safetensors_of(folder), *sorted(folder.glob("*.bin"))]:
        digest.update(f"{weights.name}\0{weights.stat().st_size}\0".encode() + _samples(weights))
    return digest.hexdigest()[:40]


def _samples(file: Path, pieces: int = 64, size: int = 4096) -> bytes:
    """A hash of the file's head and of pieces spread evenly over it."""
    digest = hashlib.sha256(read_header(file) if file.suffix == ".safetensors" else b"")
    length = file.stat().st_size
    with file.open("rb") as stream:
        for piece in range(pieces):
            stream.seek(length * piece // pieces)
            digest.update(stream.read(size))
    return digest.digest()
