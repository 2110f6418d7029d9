"""In-flight batching: as a row ends, another takes its place at the next step.

``InflightEngine._work`` is the whole of it: the scheduler says which tokens come next, of rows that generate and of
prompts alike; the runner computes them as one sequence without padding; and each row takes its token.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from jobs.spec import RowError
from worker.engine import padding
from worker.engine.attention import AttentionBackend
from worker.engine.failures import Failure, classify
from worker.engine.loop import SCAN_ROWS, SCAN_SECONDS, EngineLoop
from worker.engine.memory import free_memory
from worker.engine.request import EngineLimits, EngineStats
from worker.engine.row import Row, RowTokenizer
from worker.engine.runner import Runner
from worker.engine.scheduler import Chunk, Scheduler
from worker.engine.serving import backend_for
from worker.engine.twins import Twins

log = logging.getLogger(__name__)

#: Tokens that a lone row is given at least where memory is short.
MIN_CHUNK = 16


def default_step_tokens(device: torch.device) -> int:
    """Tokens of one step where nobody names a number: enough to keep the device busy, few enough that rows which
    generate do not wait long for a prompt."""
    return 8192 if device.type == "cuda" else 512


class _Limits(NamedTuple):
    """What fits: rows at once, tokens of a step, positions of keys and values."""

    rows: int
    step_tokens: int
    budget: int


class InflightEngine(EngineLoop):
    """Generates with any causal language model whose attention can be replaced. Owns the model and its device.

    Raises UnservableError for a model that cannot be run so: ``PaddedEngine`` takes any.
    """

    def __init__(
        self, model: Any, tokenizer: RowTokenizer, limits: EngineLimits, backend: AttentionBackend | None = None
    ) -> None:
        length = min(limits.max_length, padding.context_of(model.config) or limits.max_length)
        tokens = limits.max_batch_tokens or default_step_tokens(model.device)
        limits = replace(limits, max_length=length, max_batch_tokens=tokens)
        self._backend = backend or backend_for(model, limits)
        eos_ids = padding.take_over_generation(model, tokenizer.eos_id)
        super().__init__(tokenizer, limits, eos_ids, model.get_input_embeddings().num_embeddings)
        self.scheduler: Scheduler[Row] = Scheduler(self._backend.cache, limits.max_rows, tokens)
        self._runner = Runner(model, self._backend)
        #: Rows of a step that failed for one of them, until they have been in one that did not.
        self._suspects: set[int] = set()
        self._suspects_at_once = 0
        #: Unless rows are being isolated.
        self._max_rows = limits.max_rows
        #: What was known to fit before the first of them ran out of memory.
        self._before: _Limits | None = None
        self._twins = Twins()
        self._counters = EngineStats()
        self._scanned_at = 0.0

    def _work(self) -> bool:
        """Compute one step."""
        started = time.monotonic()
        self._drop_cancelled()
        chunks = self._next_step()
        if not chunks:
            return False
        try:
            outcome = self._runner.run(chunks)
        except Exception as error:
            failure, reason = classify(error), f"{type(error).__name__}: {error}"
            if failure is Failure.DEVICE:
                raise
            outcome = None
        if outcome is None:
            # Outside of the except block: the traceback holds the tensors of the failed step.
            self._recover(chunks, failure, reason)
            return True
        self._trust(chunks)
        chosen, bad = outcome
        for row, choice, place in chosen:
            if choice.bad[place]:
                bad.append(row)
            else:
                row.take(choice.tokens[place], choice.logprobs[place] if choice.logprobs else None)
        for row in bad:
            self._runner.erase(row)
            row.fail(RowError.NUMERIC_ERROR, f"NaN or infinite logits after {row.generated} tokens")
        self._retire([chunk.row for chunk in chunks if chunk.row.done])
        self._count(steps=1, step_seconds=time.monotonic() - started)
        return True

    def stats(self) -> EngineStats:
        scheduler = self.scheduler
        return replace(
            self._counters,
            shared_tokens=scheduler.shared_tokens,
            preempted_rows=scheduler.preempted,
            repeated_rows=self._twins.repeated,
            kv_used_ratio=self._backend.cache.used_ratio,
            running_rows=scheduler.running,
            waiting_rows=len(scheduler),
        )

    @property
    def backend(self) -> AttentionBackend:
        return self._backend

    def _add(self, row: Row) -> None:
        if not self._twins.join(row):
            self.scheduler.add(row)

    def _next_step(self) -> Sequence[Chunk[Row]]:
        with self.lock:
            chunks = self.scheduler.next_step()
            unfit, self.scheduler.unfit = self.scheduler.unfit, []
        for row in unfit:
            row.fail(RowError.OUT_OF_MEMORY, f"{row.length} tokens do not fit into the memory for keys and values")
        self._retire(unfit)
        return chunks

    def _retire(self, rows: Sequence[Row]) -> None:
        """Give up the places of rows that have ended."""
        with self.lock:
            for row in rows:
                self.scheduler.retire(row)
                for other in self._twins.ended(row):
                    self.scheduler.add(other)
        for row in rows:
            self._runner.forget(row)
            self._suspects.discard(row.key)
        self._count(
            rows=len(rows),
            prompt_tokens=sum(row.prompt_tokens for row in rows),
            completion_tokens=sum(row.generated for row in rows),
        )

    def _drop_cancelled(self) -> None:
        """End the rows that are cancelled; where many are in hand, only now and then."""
        now = time.monotonic()
        if self.rows_in_hand > SCAN_ROWS and now - self._scanned_at < SCAN_SECONDS:
            return
        self._scanned_at = now
        with self.lock:
            cancelled = [row for row in self._rows.values() if row.request.cancelled]
            for row in cancelled:
                row.cancel()
            if cancelled:
                self.scheduler.remove(lambda row: row.done)
        if cancelled:
            self._retire(cancelled)

    def _recover(self, chunks: Sequence[Chunk[Row]], failure: Failure, reason: str) -> None:
        """Give the rows of a failed step another chance in smaller company; alone, failing is an error.

        The cache begins anew, and with it all rows that were running. What they have generated stays.
        """
        rows, tokens = [chunk.row for chunk in chunks], sum(chunk.count for chunk in chunks)
        log.warning("a step of %d tokens of %d rows failed: %s", tokens, len(rows), reason)
        memory, budget = failure is Failure.MEMORY, None
        if memory and (len(rows) > 1 or tokens > MIN_CHUNK):
            self._shrink(len(rows), tokens)
            self._suspect(rows)
        elif memory and not rows[0].retried:
            # So little is only tried again, in case another process held the memory.
            rows[0].retried = True
        elif len(rows) == 1:
            budget = self._take_back() if memory else None
            rows[0].fail(RowError.OUT_OF_MEMORY if memory else RowError.INTERNAL_ERROR, reason)
            self._retire(rows)
            self._suspects.clear()
            self._trust([])
        else:
            self._suspect(rows)
        with self.lock:
            self.scheduler.restart(first=self._suspects or {row.key for row in rows})
            self._runner.reset(budget)
            self.scheduler.cache = self._backend.cache
        for row in rows:
            self._runner.forget(row)
        free_memory()

    def _shrink(self, rows: int, tokens: int) -> None:
        """Remember half of what did not fit as the most that does.

        A prompt that ran alone says nothing about how many rows fit; but a step has a token for each row, at least.
        """
        scheduler, cache = self.scheduler, self._backend.cache
        self._before = self._before or _Limits(self._max_rows, scheduler.max_step_tokens, cache.budget)
        self._max_rows = min(self._max_rows, rows // 2 if rows > 1 else tokens // 2)
        if tokens > rows:
            scheduler.max_step_tokens = min(scheduler.max_step_tokens, max(tokens // 2, MIN_CHUNK))
        if rows > 1:
            # A row of any length is still tried, if need be alone.
            least = min(cache.budget, 2 * self.limits.max_length)
            cache.shrink(max(int(cache.budget * cache.used_ratio) // 2, least))
        log.warning("out of memory: at most %d rows and %d tokens a step", self._max_rows, scheduler.max_step_tokens)

    def _take_back(self) -> int | None:
        """Undo what was learned while a row was found that does not fit even alone: it was that row, and what the
        others did not fit with says nothing. The budget for keys and values of before."""
        before, self._before = self._before, None
        if before is None:
            return None
        self._max_rows, self.scheduler.max_step_tokens = before.rows, before.step_tokens
        return before.budget

    def _suspect(self, rows: Sequence[Row]) -> None:
        """Begin again with half of the rows of a failed step, or of those that are not trusted among them."""
        keys = {row.key for row in rows}
        self._suspects = (keys & self._suspects) or keys
        self._suspects_at_once = max(len(self._suspects) // 2, 1)
        self.scheduler.max_rows = min(self._max_rows, self._suspects_at_once)

    def _trust(self, chunks: Sequence[Chunk[Row]]) -> None:
        """The rows of a step that went well are not those that make steps fail: others may join them."""
        if self._suspects:
            self._suspects.difference_update(chunk.row.key for chunk in chunks)
        if self._suspects:
            self.scheduler.max_rows = min(self._max_rows, len(chunks) + self._suspects_at_once)
        else:
            self._before = None
            self.scheduler.max_rows = self._max_rows

    def _count(self, **more: float) -> None:
        self._counters = replace(
            self._counters, **{name: getattr(self._counters, name) + n for name, n in more.items()}
        )
