"""Loading a model and its tokenizer from a folder or from the hub, safely and with errors that people understand."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
from transformers.utils import logging as transformers_logging

from jobs.errors import ModelError
from worker.engine.padding import context_of
from worker.tokenizer import PromptTokenizer, TokenizeError
from worker.weights import content_revision, safetensors_of

__all__ = ["UNBOUNDED", "LoadedModel", "PromptTokenizer", "TokenizeError", "load_model"]

log = logging.getLogger(__name__)

#: The context length of a model that names none.
UNBOUNDED = 1_000_000

_DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A model on its device, ready to generate."""

    #: The alias that jobs name.
    name: str
    #: The folder or hub id that it came from.
    source: str
    #: The hub's commit, or a hash of what the folder holds.
    revision: str
    dtype: str
    device: str
    #: The same for two workers only if revision and dtype are: jobs are pinned to it.
    fingerprint: str
    model: Any
    tokenizer: PromptTokenizer
    #: Tokens of prompt and output together.
    max_length: int


def load_model(
    name: str,
    path_or_id: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> LoadedModel:
    """Load ``path_or_id``, a folder or a model id of the hub, to be served under ``name``.

    ``device`` auto is CUDA if there is any, else the CPU. ``dtype`` auto is float32 on the CPU, and otherwise
    bfloat16 where the device computes in it, else float16. Raises ModelError, in one sentence, for whatever
    is wrong.
    """
    where = _device(device)
    number = _dtype(dtype, where)
    folder = _folder(path_or_id)
    if folder is not None:
        _check_folder(folder, allow_pickle)
    with _quiet():
        config = _config(path_or_id, trust_remote_code)
        revision = _commit(path_or_id, config) if folder is None else content_revision(folder)
        origin = {
            "trust_remote_code": trust_remote_code,
            **({"revision": revision} if folder is None and revision != "unknown" else {}),
        }
        tokenizer = _tokenizer(path_or_id, origin)
        model = _weights(path_or_id, config, number, origin, allow_pickle)
        model = _move(model.eval(), where, path_or_id)
    dtype_name = str(model.dtype).removeprefix("torch.")
    fingerprint = hashlib.sha256(f"{revision}\0{dtype_name}".encode()).hexdigest()[:16]
    length = context_of(config) or tokenizer.max_length or UNBOUNDED
    log.info("loaded %s from %s: %s on %s, context %d", name, path_or_id, dtype_name, where, length)
    return LoadedModel(name, path_or_id, revision, dtype_name, str(where), fingerprint, model, tokenizer, length)


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        # Nothing but an allocation tells for every kind of device whether it can be used.
        torch.empty(1, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ModelError(
            f"the device {device!r} cannot be used: {_first_line(error)}; give cpu, or auto, instead"
        ) from error
    return wanted


def _dtype(dtype: str, device: torch.device) -> torch.dtype:
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise ModelError(f"unknown dtype {dtype!r}: use auto, float32, bfloat16 or float16")
        return _DTYPES[dtype]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def _folder(path_or_id: str) -> Path | None:
    """The folder that is meant, or None for a hub id, which is ``name`` or ``owner/name``."""
    path = Path(os.path.expanduser(path_or_id))
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{path_or_id} is a file: give the model's folder, with config.json and *.safetensors")
    if path_or_id.startswith((".", "/", "~")) or path_or_id.count("/") > 1:
        raise ModelError(f"there is no folder {path_or_id}")
    return None


def _check_folder(folder: Path, allow_pickle: bool) -> None:
    """Find what would fail much later, or with a message about something else."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a model: it has no config.json")
    if not safetensors_of(folder) and not allow_pickle:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = f"only pickled weights ({pickled[0]}), which can run code when loaded" if pickled else "no weights"
        raise ModelError(f"{folder} has {found}: weights in *.safetensors are needed")


@contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars off for good, and warnings of the load into our own log."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for warning in caught:
        log.debug("while loading: %s", warning.message)


def _config(path_or_id: str, trust_remote_code: bool) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(path_or_id, trust_remote_code=trust_remote_code)
    except Exception as error:
        _explain(path_or_id, error, "its configuration cannot be read")
    if config.is_encoder_decoder:
        raise ModelError(f"{path_or_id} is an encoder-decoder model ({config.model_type}): only decoders can be served")
    return config


def _tokenizer(path_or_id: str, origin: dict[str, Any]) -> PromptTokenizer:
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(path_or_id, **origin)
        tokenizer = PromptTokenizer(loaded)
        # Some tokenizer classes load from nothing at all, and then know their special tokens only.
        ids = loaded("The quick brown fox", add_special_tokens=False).input_ids
        if not len(ids) or set(ids) <= set(loaded.all_special_ids):
            raise ModelError("no vocabulary")
    except Exception as error:
        if "trust_remote_code" in str(error):
            _explain(path_or_id, error, "")
        raise ModelError(
            f"{path_or_id} has no usable tokenizer ({_first_line(error)}): its folder should have a tokenizer.json"
        ) from error
    return tokenizer


def _weights(path_or_id: str, config: Any, dtype: torch.dtype, origin: dict[str, Any], allow_pickle: bool) -> Any:
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path_or_id, config=config, dtype=dtype, output_loading_info=True,
            use_safetensors=None if allow_pickle else True, **origin,
        )  # fmt: skip
    except Exception as error:
        _explain(path_or_id, error, "its weights cannot be loaded")
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        # transformers would fill them with random numbers.
        raise ModelError(
            f"{path_or_id} lacks {len(missing)} weights that its config.json asks for, such as {missing[0]}"
        )
    return model


def _move(model: Any, device: torch.device, path_or_id: str) -> Any:
    try:
        return model.to(device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        raise ModelError(f"{path_or_id} does not fit on {device}: {_first_line(error)}") from error


def _commit(model_id: str, config: Any) -> str:
    """The commit that ``config`` was loaded from, by the hub's answer or by the cache's folder names."""
    if commit := getattr(config, "_commit_hash", None):
        return str(commit)
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(model_id, "config.json")
    return Path(cached).parent.name if isinstance(cached, str) else "unknown"


def _explain(path_or_id: str, error: Exception, otherwise: str) -> NoReturn:
    """Raise a ModelError for what transformers raised. It has few exception types: the text has to tell."""
    text = str(error)
    if isinstance(error, ModelError):
        raise error
    if "trust_remote_code" in text:
        reason = "it needs code of its own: if you trust its author, add --trust-remote-code"
    elif "does not recognize this architecture" in text or "Unrecognized model" in text:
        reason = f"transformers {transformers.__version__} does not know its architecture"
    elif "Unrecognized configuration class" in text:
        reason = "it is not a model that generates text (no causal language model)"
    elif "gated repo" in text or "401 Client Error" in text or "403 Client Error" in text:
        reason = "the hub wants a token that may read it: set HF_TOKEN"
    elif "is not a local folder and is not a valid model identifier" in text or "404 Client Error" in text:
        reason = "there is neither a folder nor a model on the hub of that name"
    elif "couldn't connect" in text or "Cannot send a request" in text or "offline mode" in text:
        reason = "the hub cannot be reached, and the model is not in the cache: give a folder"
    elif "does not appear to have a file named" in text and "safetensors" in text:
        reason = "it has no weights in *.safetensors"
    elif isinstance(error, json.JSONDecodeError) or "is not a valid JSON file" in text:
        reason = "its config.json is not valid JSON"
    else:
        reason = f"{otherwise}: {type(error).__name__}: {_first_line(error)}"
    raise ModelError(f"cannot load {path_or_id}: {reason}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
