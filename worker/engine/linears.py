"""Linear layers whose weights are in the order that the CPU's matrix kernels want, once and for all.

``F.linear`` reorders, or does not and computes from the order it finds, at each call. oneDNN can take weights that were
reordered before; PyTorch does so itself when it freezes a compiled model, through the two operators used here. They
are private, so each shape is checked against ``F.linear``, and a model whose check fails stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

log = logging.getLogger(__name__)

#: Of the largest output, how far a packed layer may be from ``F.linear``: rounding in another order.
_TOLERANCE = 1e-4

#: Rows with which each shape is checked: one, few, more than a block of the kernels.
_CHECK_ROWS = (1, 5, 70)


class PackedLinear(nn.Module):
    """``x @ weight.T + bias`` for float32 on the CPU; ``weight`` [out, in], ``bias`` [out] or None."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self._bias = bias
        # In a tuple, which keeps it out of the model's own list of layers.
        self._replaced: tuple[Any, ...] = ()

    @classmethod
    def replacing(cls, layer: Any) -> PackedLinear:
        """What computes the same as a linear layer, which loses its weight to it."""
        packed = cls(*_parts(layer))
        packed._replaced = (layer,)
        layer.weight = None
        return packed

    def forward(self, x: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return packed

    def unpacked(self) -> Any:
        """The layer that this one replaced, with its weight."""
        (layer,) = self._replaced
        weight = self._weight.to_dense()
        layer.weight = nn.Parameter(weight.t().contiguous() if type(layer) is Conv1D else weight, requires_grad=False)
        return layer


@torch.no_grad()
def pack(model: Any) -> bool:
    """Replace the linear layers of ``model`` by packed ones; False, and nothing changed, where that is no use.

    Their weights are given up one by one. A tied one stays in its other place: an embedding keeps its own, in the
    order in which it is read.
    """
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    try:
        one_of_each = {_parts(layer)[0].shape: layer for _, _, layer in _linears(model)}
        available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        if not available or not all(map(_agrees, one_of_each.values())):
            raise RuntimeError("it computes something else")
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        log.warning("the linear layers stay as they are: packing them does not work here (%s)", error)
        return False
    packed: dict[int, PackedLinear] = {}
    for parent, name, layer in [*_linears(model)]:
        # A layer may be in two places.
        packed[id(layer)] = packed.get(id(layer)) or PackedLinear.replacing(layer)
        setattr(parent, name, packed[id(layer)])
    _fuse_activations(model)
    return True


@torch.no_grad()
def unpack(model: Any) -> None:
    """Undo ``pack``: the layers that were replaced, tied as they were."""
    for parent in [*model.modules()]:
        for name, layer in [*parent.named_children()]:
            if isinstance(layer, PackedLinear):
                setattr(parent, name, layer.unpacked())
    model.tie_weights()


def _linears(model: Any) -> Iterator[tuple[Any, str, Any]]:
    """Every linear layer: its parent, its name there, and itself."""
    for parent in [*model.modules()]:
        for name, layer in [*parent.named_children()]:
            # Subclasses may compute something else.
            if type(layer) is nn.Linear or type(layer) is Conv1D:
                yield parent, name, layer


def _parts(layer: Any) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias."""
    weight, bias = layer.weight.detach(), layer.bias
    return weight.t() if type(layer) is Conv1D else weight, None if bias is None else bias.detach()


def _agrees(layer: Any) -> bool:
    weight, bias = _parts(layer)
    packed = PackedLinear(weight, bias)
    generator = torch.Generator().manual_seed(0)
    for rows in _CHECK_ROWS:
        x = torch.randn(1, rows, weight.shape[1], generator=generator)
        want = F.linear(x, weight, bias)
        if not (packed(x) - want).abs().max() <= _TOLERANCE * want.abs().max():
            return False
    return True


def _fuse_activations(model: Any) -> None:
    """GPT-2's GELU is written out in six operations; torch has the same formula in one."""
    for parent in [*model.modules()]:
        for name, layer in [*parent.named_children()]:
            if type(layer) is NewGELUActivation:
                setattr(parent, name, nn.GELU(approximate="tanh"))
