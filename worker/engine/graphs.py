"""Steps in which every row generates, recorded once as CUDA graphs and replayed.

Such a step is short on the device and long on the host, which launches hundreds of kernels for it; a graph launches
them all at once. A graph has a fixed number of rows, so a step is padded to the next *bucket*: the rows that it lacks
have one token each, at the beginning of the scratch block.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention import attending
from worker.engine.block_attention import BlockAttention
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


class CaptureError(Exception):
    """Raised where a step cannot be captured, on a device that is well."""


class Capture(Protocol):
    """Records computations for replay."""

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """A function that computes anew what ``compute`` does. Raises CaptureError, or what ``compute`` raises."""
        ...

    def forget(self) -> None:
        """Everything that was captured is gone."""
        ...


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
        #: Buckets whose graph did not fit into the memory.
        self._too_large: set[int] = set()
        #: Of the backend's pools, where the graphs read and write. The pools themselves are not held: they would
        #: outlive a reset, and the next ones would not fit beside them.
        self._generation = backend.generation

    def run(self, packed: Sequence[Chunk[Row]]) -> Tensor | None:
        """Logits [R, V] of a step that was prepared, until the next one; None if it is not for a graph."""
        rows = bucket(len(packed))
        if self._capture is None or rows is None or any(chunk.count > 1 or not chunk.samples for chunk in packed):
            return None
        if self._generation != self._backend.generation:
            self.clear()
        if rows in self._too_large:
            return None
        graph = self._graphs.get(rows) or _Graph(self._model, self._backend, rows)
        graph.fill(packed)
        if rows not in self._graphs:
            if not self._captured(graph):
                return None
            self._graphs[rows] = graph
        return graph.replay()[: len(packed)]

    def clear(self) -> None:
        """Drop all graphs, and the memory that they keep."""
        self._graphs.clear()
        self._too_large.clear()
        self._generation = self._backend.generation
        if self._capture is not None:
            self._capture.forget()

    def _captured(self, graph: _Graph) -> bool:
        if self._capture is None:
            return False
        try:
            graph.replay = self._capture(graph.compute)
        except Exception as error:
            failure = classify(error)
            if failure is Failure.DEVICE:
                raise
            if failure is Failure.MEMORY:
                log.warning("no CUDA graph for %d rows: %s", graph.rows, error)
                self._too_large.add(graph.rows)
                return False
            log.warning("no CUDA graphs: capturing one failed (%s: %s)", type(error).__name__, error)
            self.clear()
            self._capture = None
            return False
        return True


class _Graph:
    """A step of ``rows`` rows, a token each, that reads its input where ``fill`` puts it."""

    replay: Callable[[], Tensor]

    def __init__(self, model: Any, backend: BlockAttention, rows: int) -> None:
        self._model = model
        self._backend = backend
        self.rows = rows
        self._width = backend.table_width
        # Ids and positions, then what a plan has: places, two times starts, lengths, tables.
        self._numbers = torch.zeros(6 * rows + 2 + rows * self._width, dtype=torch.int64, device=model.device)

    def fill(self, packed: Sequence[Chunk[Row]]) -> None:
        """Write the input of a step, without waiting for the device."""
        plan = self._backend.plan.padded(self.rows, self._width)
        ids = np.zeros(self.rows, np.int64)
        ids[: len(packed)] = [chunk.row.ids(chunk.start, 1)[0] for chunk in packed]
        numbers = np.concatenate([ids, plan.lengths - 1, plan.numbers()])
        self._numbers.copy_(upload(numbers, self._numbers.device), non_blocking=True)

    def compute(self) -> Tensor:
        """Logits [rows, V]."""
        ids, positions = self._numbers[: 2 * self.rows].view(2, 1, -1)
        layout = Layout.of(self._numbers[2 * self.rows :], self.rows, self.rows, 1, self._backend.max_length)
        with self._backend.laid_out(layout), attending(self._backend):
            logits: Tensor = self._model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        return logits


class CudaCapture:
    """Captures with ``torch.cuda.graph``; the graphs share their memory, as only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # One for warming up and capturing: libraries keep a workspace for every stream that they have run on, and one
        # that they make during a capture stays in the graphs' memory.
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.forget()

    def forget(self) -> None:
        # Memory whose graphs are gone takes no others.
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        with torch.cuda.device(self._device):
            self._warm_up(compute)
            return self._record(compute)

    def _warm_up(self, compute: Callable[[], Tensor]) -> None:
        """Two runs: libraries set themselves up in the first; one that waits for the device fails in the second, as it
        would in the capture, but there the device would be lost."""
        before, mode = torch.cuda.current_stream(), torch.cuda.get_sync_debug_mode()
        self._stream.wait_stream(before)
        with torch.cuda.stream(self._stream):
            compute()
            torch.cuda.set_sync_debug_mode("error")
            try:
                compute()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        before.wait_stream(self._stream)

    def _record(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, self._memory, self._stream, capture_error_mode="thread_local"):
                logits = compute()
        except Exception as error:
            # A capture that cannot be ended leaves its stream the current one.
            torch.cuda.set_stream(before)
            if classify(error) is Failure.MEMORY:
                raise
            # Raises again where the device is lost.
            torch.cuda.synchronize()
            raise CaptureError(str(error).partition("\n")[0]) from error

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay


def graphs_for(model: Any, backend: object) -> Graphs | None:
    """None where there is nothing to capture: on other devices than CUDA, and on slots."""
    if model.device.type != "cuda" or not isinstance(backend, BlockAttention):
        return None
    return Graphs(model, backend, CudaCapture(model.device))
