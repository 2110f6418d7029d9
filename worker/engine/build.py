"""Which engine serves a model: in-flight batches wherever they compute what the model computes, else padded ones."""

from __future__ import annotations

import logging
from typing import Any, Literal

from jobs.errors import ModelError
from worker.engine.inflight import InflightEngine
from worker.engine.linears import PackedLinear
from worker.engine.padded import PaddedEngine
from worker.engine.request import Engine, EngineLimits
from worker.engine.row import RowTokenizer
from worker.engine.serving import UnservableError

log = logging.getLogger(__name__)

EngineChoice = Literal["auto", "inflight", "padded"]


def build_engine(
    choice: EngineChoice, model: Any, tokenizer: RowTokenizer, limits: EngineLimits
) -> tuple[Engine, Literal["inflight", "padded"]]:
    """An engine for ``model``, not started, and its name.

    ``auto`` is in-flight batching for every model that can be served so. Raises ModelError where ``inflight`` was
    asked for and the model is none of those.
    """
    if choice == "padded":
        return PaddedEngine(model, tokenizer, limits), "padded"
    try:
        return InflightEngine(model, tokenizer, limits), "inflight"
    except UnservableError as error:
        kind = type(model).__name__
        if choice == "inflight":
            raise ModelError(
                f"{kind} cannot be served by --engine inflight: {error}; use --engine auto or padded"
            ) from error
        log.warning("%s is served in padded batches, which are slower: %s", kind, error)
    # Outside of the except block: the traceback holds the tensors of the check.
    return PaddedEngine(model, tokenizer, limits), "padded"


def describe(engine: Engine, model: Any) -> dict[str, Any]:
    """How ``engine`` runs ``model``: its attention, its room for keys and values in tokens, its linear layers."""
    packed = any(isinstance(module, PackedLinear) for module in model.modules())
    inflight = engine if isinstance(engine, InflightEngine) else None
    return {
        "attention": inflight.backend.name if inflight else str(model.config._attn_implementation),
        # A padded batch takes what it needs for as long as it runs.
        "kv_tokens": inflight.backend.cache.budget if inflight else None,
        "linear_layers": "packed" if packed else "as loaded",
    }
