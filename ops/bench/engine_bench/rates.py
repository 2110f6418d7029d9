"""What the machine can do at a model's shapes: the best matrix product of any library here, and reading memory.

CTranslate2's own matrix product cannot be called from Python; it is MKL's, oneDNN's or OpenBLAS', which are
measured here through torch and numpy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product as product_of

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine_bench.models import ModelShape

#: Rows of a step: 128 generate at once at most, and a step may have prompt tokens beside them.
ROWS = (32, 64, 128, 256)

#: A weight is met again after so many bytes of others: beyond any cache, as in a model.
_COLD_BYTES = 128 * 2**20
_MOST_COPIES = 64

#: The best of at least so many passes.
_PASSES = 2

#: Read for the bandwidth.
_READ_BYTES = 2**29

#: Of x [rows, inputs]; made from a weight [outputs, inputs] and the number of rows.
Product = Callable[[Tensor], object]
Library = Callable[[Tensor, int], Product]


@dataclass(frozen=True)
class Best:
    """The fastest product with one shape of weight."""

    inputs: int
    outputs: int
    library: str
    rows: int
    flops: float


@dataclass(frozen=True)
class Measured:
    products: tuple[Best, ...]
    #: Bytes/s.
    bandwidth: float
    #: The libraries that took part; which private operators there are depends on the build of torch.
    libraries: tuple[str, ...]


def measure(shape: ModelShape, threads: int, seconds: float = 0.05) -> Measured:
    """Repeats each product for so many ``seconds``; with packing that makes some seconds for each shape of weight."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        libraries = {name: product for name, product in _LIBRARIES.items() if _works(product)}
        shapes = dict.fromkeys(linear.shape for linear in (*shape.layer_linears, shape.head))
        products = tuple(_best_product(*one, libraries, seconds) for one in shapes)
        return Measured(products, _bandwidth(seconds), tuple(libraries))


def _torch_product(weight: Tensor, rows: int) -> Product:
    return lambda x: F.linear(x, weight)


def _numpy_product(weight: Tensor, rows: int) -> Product:
    transposed = weight.numpy().T
    return lambda x: np.matmul(x.numpy(), transposed)


def _onednn_product(weight: Tensor, rows: int) -> Product:
    reordered = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, reordered, None, "none", [], "")


def _mkl_product(weight: Tensor, rows: int) -> Product:
    reordered = torch.ops.mkl._mkl_reorder_linear_weight(weight, rows)
    return lambda x: torch.ops.mkl._mkl_linear(x, reordered, weight, None, rows)


_LIBRARIES: dict[str, Library] = {
    "F.linear": _torch_product,
    "numpy": _numpy_product,
    "oneDNN, reordered": _onednn_product,
    "MKL, packed": _mkl_product,
}


def _works(product: Library) -> bool:
    weight, x = torch.randn(48, 32), torch.randn(ROWS[0], 32)
    try:
        result = product(weight, len(x))(x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(torch.as_tensor(result), x @ weight.T, atol=1e-3)


def _best_product(inputs: int, outputs: int, libraries: Mapping[str, Library], seconds: float) -> Best:
    copies = min(_MOST_COPIES, -(-_COLD_BYTES // (4 * inputs * outputs)))
    weights = [torch.randn(outputs, inputs) for _ in range(copies)]
    tried = []
    for (library, product), rows in product_of(libraries.items(), ROWS):
        best = _fastest_pass([product(weight, rows) for weight in weights], torch.randn(rows, inputs), seconds)
        tried.append(Best(inputs, outputs, library, rows, 2 * rows * inputs * outputs * copies / best))
    return max(tried, key=lambda one: one.flops)


def _fastest_pass(products: Sequence[Product], x: Tensor, for_seconds: float) -> float:
    """Seconds of the fastest pass over all of ``products``."""
    best, passes, since = float("inf"), 0, time.perf_counter()
    while passes < _PASSES or time.perf_counter() - since < for_seconds:
        started = time.perf_counter()
        for product in products:
            product(x)
        best = min(best, time.perf_counter() - started)
        passes += 1
    return best


def _bandwidth(seconds: float) -> float:
    """Bytes/s of reading an array far larger than the caches, by the faster of a sum and a dot product."""
    numbers = torch.ones(_READ_BYTES // 4)
    half = len(numbers) // 2
    reads: list[Product] = [torch.sum, lambda x: torch.dot(x[:half], x[half:])]
    return _READ_BYTES / min(_fastest_pass([read], numbers, seconds) for read in reads)
