"""Steps in which every row generates, recorded once as CUDA graphs and replayed.

Such a step is short on the device and long on the host, which launches hundreds of kernels for it; a graph launches
them all at once. A graph has a fixed number of rows, so a step is padded to the next *bucket*: the rows that it lacks
have one token each, at the beginning of the scratch block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention import attending
from worker.engine.block_attention import BlockAttention, Pools
from worker.engine.block_kernels import Layout
from worker.engine.failures import Failure, classify
from worker.engine.row import Row
from worker.engine.sampling_plan import upload
from worker.engine.scheduler import Chunk

log = logging.getLogger(__name__)

#: Buckets for few rows; above, powers of two and what lies half-way between two of them.
_SMALL = (1, 2, 4, 8, 16, 24)
#: Above this, a step takes the device longer than the host needs to launch it.
MOST_ROWS = 512

#: Runs of the step before it is captured, in which libraries set themselves up.
_WARM_UPS = 2

#: Takes a function without arguments that computes a tensor, and returns one that computes it anew.
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]


def bucket(rows: int) -> int | None:
    """The number of rows that a step of ``rows`` is padded to; None if there are too many for a graph."""
    if rows > MOST_ROWS:
        return None
    power = 1 << (rows - 1).bit_length()
    halfway = power * 3 // 4
    return next((small for small in _SMALL if rows <= small), halfway if rows <= halfway else power)


class Graphs:
    """The graphs of a model, by bucket; each is captured when it is first needed.

    Where capturing fails, once, no graph is tried again.
    """

    def __init__(self, model: Any, backend: BlockAttention, capture: Capture) -> None:
        self._model = model
        self._backend = backend
        self._capture: Capture | None = capture
        self._graphs: dict[int, _Graph] = {}
        #: Where the graphs read and write.
        self._pools: Pools | None = None

    def run(self, packed: Sequence[Chunk[Row]]) -> Tensor | None:
        """Logits [R, V] of a step that was prepared, until the next one; None if it is not for a graph."""
        rows = bucket(len(packed))
        if self._capture is None or rows is None or any(chunk.count > 1 or not chunk.samples for chunk in packed):
            return None
        if self._pools is not self._backend.pools:
            self._graphs.clear()
            self._pools = self._backend.pools
        graph = self._graphs.get(rows) or _Graph(self._model, self._backend, rows)
        graph.fill(packed)
        if rows not in self._graphs:
            if not self._captured(graph):
                return None
            self._graphs[rows] = graph
        return graph.replay()[: len(packed)]

    def _captured(self, graph: _Graph) -> bool:
        if self._capture is None:
            return False
        try:
            graph.replay = self._capture(graph.compute)
        except Exception as error:
            if classify(error) is Failure.DEVICE:
                raise
            log.warning("no CUDA graphs: capturing one failed (%s: %s)", type(error).__name__, error)
            self._capture = None
            self._graphs.clear()
            return False
        return True


class _Graph:
    """A step of ``rows`` rows, a token each, that reads its input where ``fill`` puts it."""

    replay: Callable[[], Tensor]

    def __init__(self, model: Any, backend: BlockAttention, rows: int) -> None:
        self._model = model
        self._backend = backend
        self._rows = rows
        self._width = backend.table_width
        # Ids and positions, then what a plan has: places, two times starts, lengths, tables.
        self._numbers = torch.zeros(6 * rows + 2 + rows * self._width, dtype=torch.int64, device=model.device)

    def fill(self, packed: Sequence[Chunk[Row]]) -> None:
        """Write the input of a step, without waiting for the device."""
        plan = self._backend.plan.padded(self._rows, self._width)
        ids = np.zeros(self._rows, np.int64)
        ids[: len(packed)] = [chunk.row.ids(chunk.start, 1)[0] for chunk in packed]
        numbers = np.concatenate([ids, plan.lengths - 1, plan.numbers()])
        self._numbers.copy_(upload(numbers, self._numbers.device), non_blocking=True)

    def compute(self) -> Tensor:
        """Logits [rows, V]."""
        ids, positions = self._numbers[: 2 * self._rows].view(2, 1, -1)
        layout = Layout.of(self._numbers[2 * self._rows :], self._rows, self._rows, 1, self._backend.max_length)
        with self._backend.laid_out(layout), attending(self._backend):
            logits: Tensor = self._model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        return logits


class CudaCapture:
    """Captures with ``torch.cuda.graph``; the graphs share their memory, as only one of them runs at a time."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            logits = compute()

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def graphs_for(model: Any, backend: object) -> Graphs | None:
    """None where there is nothing to capture: on other devices than CUDA, and on slots."""
    if model.device.type != "cuda" or not isinstance(backend, BlockAttention):
        return None
    return Graphs(model, backend, CudaCapture())
