"""Static padded batches over ``model.generate``.

``PaddedEngine._work`` is the whole of it: the scheduler picks rows of similar length, one call of ``generate``
runs them, and rows retire as they end. ``generate`` only keeps the loop and the cache: which token comes next
is our sampler's choice, handed over through one logits processor, and when a row has ended is ours to say
through one stopping criterion. So rows of different jobs with different parameters share a batch.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from jobs.spec import RowError
from worker.engine import padding
from worker.engine.failures import Failure, classify
from worker.engine.loop import SCAN_ROWS, SCAN_SECONDS, EngineLoop
from worker.engine.memory import free_memory
from worker.engine.padded_batch import Batch, Choose, Counters, HaveEnded
from worker.engine.padded_scheduler import PaddedScheduler
from worker.engine.padding import context_of
from worker.engine.request import EngineLimits, EngineStats
from worker.engine.row import Row, RowTokenizer

log = logging.getLogger(__name__)


def default_batch_tokens(device: torch.device) -> int:
    """Positions of one batch where nobody names a number: what fits small machines of either kind."""
    return 131_072 if device.type == "cuda" else 32_768


class PaddedEngine(EngineLoop):
    """Generates with any causal language model of transformers. Owns the model and its device.

    ``limits.max_batch_tokens`` is where it begins: running out of memory halves it for good.
    """

    def __init__(self, model: Any, tokenizer: RowTokenizer, limits: EngineLimits) -> None:
        # Beyond its context a model fails, on CUDA so that the process ends.
        length = min(limits.max_length, context_of(model.config) or limits.max_length)
        tokens = limits.max_batch_tokens or default_batch_tokens(model.device)
        limits = replace(limits, max_length=length, max_batch_tokens=tokens)
        eos_ids = padding.take_over_generation(model, tokenizer.eos_id)
        super().__init__(tokenizer, limits, eos_ids, model.get_input_embeddings().num_embeddings)
        self._model = model
        self._pad_id = padding.usable_pad_id(tokenizer.pad_id, eos_ids, self._vocabulary)
        #: False if padding changes what the model computes; then only prompts of one length share a batch.
        self.pads = padding.is_harmless(model, self._pad_id)
        self.scheduler: PaddedScheduler[Row] = PaddedScheduler(
            limits.max_rows, tokens, max_length=length, equal_prompts=not self.pads
        )
        self._counters = Counters()
        self._running: list[Row] = []
        self._scanned_at = -SCAN_SECONDS

    def _work(self) -> bool:
        """Generate one batch to its end."""
        try:
            self._drop_cancelled()
            batch = self._next_batch()
            if batch is None:
                return False
            self._run(batch)
        finally:
            self._running = []
        return True

    def stats(self) -> EngineStats:
        running = sum(not row.done for row in self._running)
        return self._counters.snapshot(running, len(self.scheduler))

    def _add(self, row: Row) -> None:
        self.scheduler.add(row)

    def _next_batch(self) -> list[Row] | None:
        """The rows to generate next; None if none are waiting."""
        with self.lock:
            batch = self._running = self.scheduler.next_batch()
        if not batch:
            return None
        cancelled = [row for row in batch if row.request.cancelled]
        for row in cancelled:
            row.cancel()
        if cancelled:
            # Seldom is a row cancelled alone: better a scan than batch after batch of cancelled rows.
            self._drop_cancelled(at_once=True)
        return [row for row in batch if not row.done]

    def _run(self, rows: list[Row]) -> None:
        """Generate ``rows``, whatever becomes of them. Raises only what ends the engine."""
        if not rows:
            return
        try:
            self._generate(rows)
            return
        except Exception as error:
            failure, reason = classify(error), f"{type(error).__name__}: {error}"
            if failure is Failure.DEVICE:
                raise
            with_traceback = failure is Failure.ROW and len(rows) == 1
            log.warning("a batch of %d rows failed: %s", len(rows), reason, exc_info=with_traceback)
        # Outside of the except block: the traceback holds the tensors of the failed batch.
        self._recover([row for row in rows if not row.done], failure, reason)

    def _recover(self, rows: list[Row], failure: Failure, reason: str) -> None:
        """Give the rows of a failed batch another chance in smaller company; alone, failing is an error."""
        for row in rows:
            row.restart()
        if failure is Failure.MEMORY:
            free_memory()
        if failure is Failure.MEMORY and (len(rows) > 1 or not rows[0].retried):
            self._shrink(rows)
        elif len(rows) == 1:
            code = RowError.OUT_OF_MEMORY if failure is Failure.MEMORY else RowError.INTERNAL_ERROR
            rows[0].fail(code, reason)
            self._counters.ended(rows)
        else:
            # Rows do not depend on their neighbours, so halves repeat exactly what the whole did.
            half = len(rows) // 2
            for part in (rows[:half], rows[half:]):
                if part:
                    self._run(part)

    def _shrink(self, rows: list[Row]) -> None:
        """Put the rows back, and remember half of what did not fit as the most that does.

        A row alone says nothing about batches: it is only tried again, in case another process held the memory.
        """
        used = len(rows) * (max(row.prompt_tokens for row in rows) + max(row.output_tokens for row in rows))
        with self.lock:
            if len(rows) == 1:
                rows[0].retried = True
            else:
                self.scheduler.max_batch_tokens = min(used, self.scheduler.max_batch_tokens) // 2
            self.scheduler.put_back(rows)
            self._running = [row for row in self._running if row not in rows]
        log.warning("out of memory: batches now have at most %d token positions", self.scheduler.max_batch_tokens)

    def _generate(self, rows: list[Row]) -> None:
        """One call of ``generate``; every row is done when it returns."""
        started = time.monotonic()
        device = self._model.device
        batch = Batch(rows, device, self._counters, self._between_steps)
        prompts = [row.request.prompt_ids for row in rows]
        input_ids, attention_mask = padding.pad_left(prompts, self._pad_id, device)
        try:
            self._model.generate(
                input_ids,
                attention_mask=attention_mask,
                generation_config=padding.plain_generation(max(row.output_tokens for row in rows), self._pad_id),
                logits_processor=LogitsProcessorList([Choose(batch)]),
                stopping_criteria=StoppingCriteriaList([HaveEnded(batch)]),
            )
        finally:
            self._counters.ran(rows, input_ids.shape[1], batch.position, time.monotonic() - started)
            self._counters.ended(rows)

    def _between_steps(self) -> bool:
        """What must not wait for the end of a batch; True if the batch is to end now."""
        self._drop_cancelled()
        return self._closing

    def _drop_cancelled(self, *, at_once: bool = False) -> None:
        """End the waiting rows that are cancelled; where many wait, only if it is time or ``at_once``."""
        now = time.monotonic()
        if not at_once and len(self.scheduler) > SCAN_ROWS and now - self._scanned_at < SCAN_SECONDS:
            return
        self._scanned_at = now
        with self.lock:
            cancelled = [row for row in self.scheduler if row.request.cancelled]
            # They leave the scheduler after they ended: if ending one fails, none is lost.
            for row in cancelled:
                row.cancel()
            if cancelled:
                self.scheduler.remove(lambda row: row.done)
