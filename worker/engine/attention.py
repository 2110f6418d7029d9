"""Attention over rows whose tokens are packed into one sequence: the seam between transformers and a backend.

Any model of transformers that looks its attention up in ``AttentionInterface`` calls ``_attend`` here, once for each
layer, with the packed tokens of a step. The backend that is active writes their keys and values to its cache
and attends for each row to that row alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from worker.engine.kv_cache import KVCache
from worker.engine.row import Row
from worker.engine.scheduler import Chunk

#: The name under which transformers knows ``_attend``.
NAME = "promptmill"


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer's attention asks for. Of an option that a model does not name, None."""

    index: int
    #: Factor of the scores, before anything else.
    scaling: float
    #: A token sees itself and ``window - 1`` tokens before it.
    window: int | None = None
    #: Scores become ``softcap * tanh(score / softcap)`` (Gemma 2).
    softcap: float | None = None
    #: A logit for each head that takes part in the softmax and has no value (GPT-OSS), [H].
    sinks: Tensor | None = None

    def over(self, positions: int) -> Layer:
        """The same for rows of at most so many positions: a window that is no narrower is none."""
        return replace(self, window=None) if self.window is not None and self.window >= positions else self

    @property
    def plain(self) -> bool:
        """Whether a token sees all that is before it, by a softmax of scaled products."""
        return self.window is None and self.softcap is None and self.sinks is None


class KVShape(NamedTuple):
    """What each layer keeps of a token."""

    layers: int
    heads: int
    key_dim: int
    value_dim: int

    @property
    def numbers(self) -> int:
        """Numbers that one token takes in all layers."""
        return self.layers * self.heads * (self.key_dim + self.value_dim)


class AttentionStep(Protocol):
    """What a model needs of a backend while it runs one step."""

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store ``key`` and ``value`` [KVH, T, D] of the step's tokens, and attend with ``query`` [H, T, D].

        Gives [T, H, Dv].
        """
        ...


class AttentionBackend(AttentionStep, Protocol):
    """Keeps keys and values, and attends to them."""

    name: str

    @property
    def cache(self) -> KVCache:
        """Which row has room for how much; the backend carries out what it decides."""
        ...

    def prepare(self, chunks: Sequence[Chunk[Row]]) -> list[Chunk[Row]]:
        """Make ready for a step; its chunks, in the order in which their tokens are to be packed."""
        ...

    def reset(self, budget: int | None = None) -> None:
        """Forget all rows and give the memory back; the budget stays what it was, or becomes what is given."""
        ...

    def erase(self, row: Row) -> None:
        """Overwrite what the cache holds of a row whose numbers are no numbers: NaN times 0 is NaN for the next."""
        ...


_active: ContextVar[AttentionStep] = ContextVar("promptmill_attention")


@contextmanager
def attending(backend: AttentionStep) -> Iterator[None]:
    """Have the models that run inside attend through ``backend``."""
    token = _active.set(backend)
    try:
        yield
    finally:
        _active.reset(token)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: ``query`` [1, H, T, D], ``key`` and ``value`` [1, KVH, T, D]; gives [1, T, H, Dv]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = Layer(module.layer_idx, scale, sliding_window, softcap, s_aux)
    return _active.get().attend(layer, query[0], key[0], value[0])[None], None


AttentionInterface.register(NAME, _attend)


def visible(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which of the positions ``keys`` [..., S] the positions ``queries`` [..., T] may see: bool [..., T, S]."""
    distance = queries[..., :, None] - keys[..., None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def attend_dense(layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of ``query`` [B, KVH, T, D] over ``key`` and ``value`` [B, KVH, S, D]; gives [B, KVH, T, Dv].

    ``mask`` is additive and broadcasts to the scores; None lets every query see every key.
    """
    if layer.softcap is None and layer.sinks is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=layer.scaling)
    scores = (query @ key.transpose(-1, -2)).float() * layer.scaling
    if layer.softcap is not None:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    if mask is not None:
        scores = scores + mask
    if layer.sinks is not None:
        sinks = layer.sinks.float().view(query.shape[1], -1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sinks], -1)
    return scores.softmax(-1)[..., : key.shape[-2]].to(value.dtype) @ value


def attend_one_by_one(layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """``attend_dense`` for rows that generate, whose few queries a head (T is 1, or the heads that share a key) are far
    fewer than the keys.

    On a CPU a product for each row and head reads the keys faster than the kernel of scaled_dot_product_attention,
    which is made for many queries: by a tenth, and by a fifth where heads share their keys.
    """
    if query.device.type != "cpu" or layer.softcap is not None or layer.sinks is not None:
        return attend_dense(layer, query, key, value, mask)
    rows, heads, queries, _ = query.shape
    scores = torch.bmm((query * layer.scaling).flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    if mask is not None:
        scores = scores.view(rows, heads, queries, -1).add_(mask).flatten(0, 1)
    return torch.bmm(scores.softmax(-1), value.flatten(0, 1)).view(rows, heads, queries, -1)


def attend_causally(layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A prompt from its beginning, [B, H, T, D]: each token attends to itself and those before it."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=layer.scaling)


def attend_with_sum(
    layer: Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``attend_dense`` on the CPU, and the log of each softmax's denominator, [B, KVH, T]."""
    out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=mask, scale=layer.scaling
    )
    return out, log_sum


def merge(first: Tensor, first_sum: Tensor, second: Tensor, second_sum: Tensor) -> Tensor:
    """Attention over two sets of keys from the attention over each, [..., Dv], and their log sums, [...].

    Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018 (arXiv 1805.02867).
    """
    weight = torch.sigmoid(first_sum - second_sum)[..., None].to(first.dtype)
    return torch.lerp(second, first, weight)
