"""Finds a model's tokenizer and context length where its files are: in a folder, the Hugging Face cache or the hub.

Only the package ``tokenizers`` is needed, not transformers or torch.
"""

from __future__ import annotations

import json
import os
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from jobs.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FILE, _CONFIG = "tokenizer.json", "config.json"

#: Seconds for the hub's first answer. Its own client would try for half a minute.
_HUB_S = 3.0

#: The names under which configurations keep the context length.
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")


def can_count() -> bool:
    """Whether the package ``tokenizers`` is installed."""
    return find_spec("tokenizers") is not None


def find_tokenizer(path_or_id: str, *, download: bool) -> Tokenizer:
    """The tokenizer of a folder, a ``tokenizer.json``, or a model id of the hub.

    An id is looked for in the local cache, and then, with ``download``, on the hub. Raises InputError, which says why
    there is none.
    """
    if not can_count():
        raise InputError("counting tokens needs the package tokenizers: pip install tokenizers")
    file = _file(path_or_id, download)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # it has no exception type of its own
        raise InputError(f"{file} is no tokenizer that can be read ({_first_line(error)})") from None
    # A file may ask for both; what is counted is the whole prompt alone.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def context_length(path_or_id: str) -> int | None:
    """Tokens of prompt and output together, by the ``config.json`` beside the tokenizer; None if it does not say."""
    path = Path(os.path.expanduser(path_or_id))
    folder = path.parent if path.is_file() else path
    found = folder / _CONFIG if folder.is_dir() else _cached(path_or_id, _CONFIG)
    try:
        config = json.loads(found.read_text(encoding="utf-8")) if found else {}
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    text = config.get("text_config")
    lengths = [part.get(name) for part in (text, config) if isinstance(part, dict) for name in _LENGTHS]
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def _file(path_or_id: str, download: bool) -> Path:
    path = Path(os.path.expanduser(path_or_id))
    if path.is_dir():
        if not (path / _FILE).is_file():
            raise InputError(f"the folder {path_or_id} has no {_FILE}")
        return path / _FILE
    if path.is_file():
        return path
    if path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1 or path.suffix == ".json":
        raise InputError(f"there is no file or folder {path_or_id}")
    if (cached := _cached(path_or_id, _FILE)) is not None:
        return cached
    if not download:
        raise InputError(f"{path_or_id} is no folder, and the Hugging Face cache has no tokenizer of that name")
    return _download(path_or_id)


def _cached(model: str, name: str) -> Path | None:
    """A file of a model in the local Hugging Face cache."""
    if find_spec("huggingface_hub") is None:
        return None
    import huggingface_hub

    try:
        found = huggingface_hub.try_to_load_from_cache(model, name)
    except ValueError:  # not the name of a model
        return None
    return Path(found) if isinstance(found, str) else None


def _download(model: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub import errors as hub

    if constants.HF_HUB_OFFLINE:
        raise InputError(f"{model} is not in the Hugging Face cache, and HF_HUB_OFFLINE is set: name a folder")
    try:
        _require(constants.ENDPOINT)
        return Path(hf_hub_download(model, _FILE))
    except hub.GatedRepoError:
        reason = "the hub wants a token that may read it: set HF_TOKEN"
    except hub.RepositoryNotFoundError:
        reason = "there is neither a folder nor a model on the hub of that name"
    except hub.EntryNotFoundError:
        reason = f"it has no {_FILE} on the hub"
    except Exception as error:  # of several libraries, and all mean the same here
        reason = f"it is not in the Hugging Face cache, and the hub cannot be reached ({_first_line(error)})"
    raise InputError(f"no tokenizer of {model}: {reason}")


def _require(endpoint: str) -> None:
    """Raises OSError where nobody answers at ``endpoint``; what is behind a proxy cannot be asked like this."""
    if not getproxies():
        url = urlsplit(endpoint)
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), _HUB_S).close()


def _first_line(error: Any) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
