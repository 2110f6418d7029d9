"""One call of ``model.generate``: its rows, how their tokens are chosen and their ends told, and what is counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from jobs.spec import RowError
from worker.engine.request import EngineStats
from worker.engine.row import Row
from worker.engine.sampler import Sampler, only


class Batch:
    """The rows of one call of ``generate``, and how far they are."""

    def __init__(
        self, rows: list[Row], device: torch.device, counters: Counters, interrupt: Callable[[], bool]
    ) -> None:
        self.rows = rows
        self.position = 0
        self._counters = counters
        self._interrupt = interrupt
        self._sampler = Sampler(device)

    def advance(self, logits: Tensor) -> Tensor:
        """Choose every row's next token from logits [B, V]; returns scores that allow no other."""
        choice = self._sampler.choose(logits, self.rows, [self.position] * len(self.rows)).on_host()
        self.position += 1
        self._counters.stepped()
        interrupted = self._interrupt()
        for i, row in enumerate(self.rows):
            if row.done:
                continue
            if row.request.cancelled or interrupted:
                row.cancel()
            elif choice.bad[i]:
                row.fail(RowError.NUMERIC_ERROR, f"NaN or infinite logits after {row.generated} tokens")
            else:
                row.take(choice.tokens[i], choice.logprobs[i] if choice.logprobs else None)
        return only(choice.tokens, logits)


class Choose(LogitsProcessor):
    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._batch.advance(scores)


class HaveEnded(StoppingCriteria):
    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([row.done for row in self._batch.rows], dtype=torch.bool, device=input_ids.device)


class Counters:
    """What ``stats`` reports; written by the engine's thread alone."""

    def __init__(self) -> None:
        self._rows = self._prompt_tokens = self._completion_tokens = self._steps = 0
        self._seconds = 0.0
        self._positions = self._useful = 0

    def stepped(self) -> None:
        self._steps += 1

    def ran(self, rows: list[Row], longest_prompt: int, steps: int, seconds: float) -> None:
        """Count one call: ``rows`` x (``longest_prompt`` + ``steps``) positions, of which the rows' own were
        useful.

        The last token of a row is never fed back, so ``n`` tokens take ``n - 1`` positions after the prompt.
        """
        self._seconds += seconds
        if steps:
            self._positions += len(rows) * (longest_prompt + steps - 1)
            self._useful += sum(row.prompt_tokens + max(row.generated - 1, 0) for row in rows)

    def ended(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row.done and not row.counted:
                row.counted = True
                self._rows += 1
                self._prompt_tokens += row.prompt_tokens
                self._completion_tokens += row.generated

    def snapshot(self, running: int, waiting: int) -> EngineStats:
        return EngineStats(
            rows=self._rows,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            steps=self._steps,
            step_seconds=self._seconds,
            padding_ratio=1 - self._useful / self._positions if self._positions else 0.0,
            running_rows=running,
            waiting_rows=waiting,
        )
