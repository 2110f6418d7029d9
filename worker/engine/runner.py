"""The model on its device: whatever runs there begins here."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention import AttentionBackend, AttentionStep, attending
from worker.engine.graphs import graphs_for
from worker.engine.row import Row
from worker.engine.sampler import Choice, Sampler
from worker.engine.sampling_plan import upload
from worker.engine.scheduler import Chunk


class Runner:
    """Runs the chunks of a step as one sequence without padding, and chooses the next tokens."""

    def __init__(self, model: Any, backend: AttentionBackend) -> None:
        self.backend = backend
        self._model = model
        self._sampler = Sampler(model.device)
        self._graphs = graphs_for(model, backend)

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk[Row]]) -> tuple[list[tuple[Row, Choice, int]], list[Row]]:
        """One step: of each row that samples, the choice and the row's place in it; and which of the others are bad.

        A prompt that takes several steps is looked at in each of them: before its end it can be cancelled, or make
        room, and the next row in its place must not find a NaN there. Waits once for the device.
        """
        packed = self.backend.prepare(chunks)
        logits = self._graphs.run(packed) if self._graphs is not None else None
        if logits is None:
            logits = forward(self._model, self.backend, packed)
        places = [place for place, chunk in enumerate(packed) if chunk.samples]
        if len(places) == len(packed):
            return self._choose(logits, packed), []
        finite = logits.amax(-1).isfinite()
        # A list as an index would wait for the device.
        own = logits.index_select(0, upload(np.array(places, np.int64), logits.device))
        chosen = self._choose(own, [packed[place] for place in places]) if places else []
        fine = {chunk.row.key for chunk, good in zip(packed, finite.tolist(), strict=True) if good or chunk.samples}
        return chosen, [chunk.row for chunk in packed if chunk.row.key not in fine]

    def reset(self, budget: int | None = None) -> None:
        """Forget all rows and give back the memory for keys and values, and whatever reads it: see ``reset`` of
        ``AttentionBackend``."""
        self.backend.reset(budget)
        if self._graphs is not None:
            self._graphs.clear()

    def forget(self, row: Row) -> None:
        """The row has ended, or begins again."""
        self._sampler.forget(row)

    @torch.inference_mode()
    def erase(self, row: Row) -> None:
        """Clear the place of a row whose numbers are no numbers."""
        self.backend.erase(row)

    def _choose(self, logits: Tensor, chunks: Sequence[Chunk[Row]]) -> list[tuple[Row, Choice, int]]:
        rows = [chunk.row for chunk in chunks]
        choice = self._sampler.choose(logits, rows, [row.generated for row in rows]).on_host()
        return [(row, choice, place) for place, row in enumerate(rows)]


def forward(model: Any, backend: AttentionStep, packed: Sequence[Chunk[Row]]) -> Tensor:
    """Logits [C, V] of the last token of each chunk; ``packed`` is what the backend prepared."""
    ids = [token for chunk in packed for token in chunk.row.ids(chunk.start, chunk.count)]
    positions = [at for chunk in packed for at in range(chunk.start, chunk.start + chunk.count)]
    last = [end - 1 for end in accumulate(chunk.count for chunk in packed)]
    numbers = upload(np.array([*ids, *positions, *last]), model.device)
    ids_t, positions_t, last_t = numbers.tensor_split((len(ids), 2 * len(ids)))
    with attending(backend):
        output = model(input_ids=ids_t[None], position_ids=positions_t[None], use_cache=False, logits_to_keep=last_t)
    logits: Tensor = output.logits[0]
    return logits
