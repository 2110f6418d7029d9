"""An engine without a model, for tests of everything around one. No torch."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jobs.spec import RowError
from worker.engine.loop import EngineLoop
from worker.engine.padded_scheduler import PaddedScheduler
from worker.engine.request import EngineLimits, EngineStats, Request
from worker.engine.row import Row

_WORDS = (
    "amber", "basket", "cedar", "delta", "ember", "fable", "garden", "harbor", "island", "jasmine", "kettle",
    "lantern", "meadow", "nectar", "orchard", "pebble", "quartz", "ribbon", "saddle", "timber", "velvet", "willow",
)  # fmt: skip


class FakeTokenizer:
    """Token ids are UTF-8 bytes; 256 ends a text. Chats are rendered as ``role: content`` lines."""

    eos_id = 256
    pad_id = 0
    special_ids: dict[str, int] = {"</s>": 256}  # noqa: RUF012 - constant
    has_chat_template = True

    def encode(self, prompt: str) -> list[int]:
        return list(prompt.encode())

    def render(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        lines = [f"{message['role']}: {message['content']}\n" for message in messages]
        return self.encode("".join(lines) + "assistant:")

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token for token in ids if token < 256).decode(errors="replace")


#: One token for each byte, and the end of a text.
_VOCABULARY = 257


class FakeEngine(EngineLoop):
    """Answers every prompt with words that its ids, the seed and the sample decide, a byte a token.

    ``tokens_per_second`` (0: at once) is the speed of the whole engine. A row whose prompt contains
    ``fail_on`` ends as an ``internal_error``; one with ``die_on`` kills the engine, as a device error would;
    one with ``crash_on`` the process, by SIGKILL, as the kernel would; one with ``hang_on`` stops all
    progress until ``close``.
    """

    def __init__(
        self,
        limits: EngineLimits | None = None,
        *,
        tokens_per_second: float = 0.0,
        fail_on: str | None = None,
        die_on: str | None = None,
        crash_on: str | None = None,
        hang_on: str | None = None,
    ) -> None:
        self.tokenizer = FakeTokenizer()
        limits = limits or EngineLimits()
        super().__init__(self.tokenizer, limits, frozenset([self.tokenizer.eos_id]), _VOCABULARY)
        self._tokens_per_second = tokens_per_second
        self._fail_on, self._die_on, self._crash_on, self._hang_on = fail_on, die_on, crash_on, hang_on
        self._scheduler: PaddedScheduler[Row] = PaddedScheduler(
            limits.max_rows, limits.max_batch_tokens or 2**14, max_length=limits.max_length
        )
        self._stats = EngineStats()

    def _work(self) -> bool:
        with self.lock:
            rows = self._scheduler.next_batch()
        for row in rows:
            self._generate(row)
        return bool(rows)

    def _add(self, row: Row) -> None:
        self._scheduler.add(row)

    def stats(self) -> EngineStats:
        return self._stats

    def _generate(self, row: Row) -> None:
        prompt = self.tokenizer.decode(row.request.prompt_ids)
        self._misbehave(row, prompt)
        tokens = iter([*self._answer(row.request), self.tokenizer.eos_id])
        while not row.done:
            if row.request.cancelled or self._closing:
                row.cancel()
                break
            if self._tokens_per_second:
                time.sleep(1 / self._tokens_per_second)
            row.take(next(tokens), -1.0)
            self._count(steps=1)
        self._count(rows=1, prompt_tokens=row.prompt_tokens, completion_tokens=row.generated)

    def _misbehave(self, row: Row, prompt: str) -> None:
        if self._crash_on is not None and self._crash_on in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._die_on is not None and self._die_on in prompt:
            raise RuntimeError("CUDA error: the fake engine was told to die")
        if self._hang_on is not None and self._hang_on in prompt:
            with self.lock:
                self.lock.wait_for(lambda: self._closing)
        if self._fail_on is not None and self._fail_on in prompt:
            row.fail(RowError.INTERNAL_ERROR, "the fake engine was told to fail")

    @staticmethod
    def _answer(request: Request) -> bytes:
        key = f"{request.prompt_ids}\0{request.seed if request.params.temperature else 0}\0{request.sample}"
        digest = hashlib.sha256(key.encode()).digest()
        return (" " + " ".join(_WORDS[byte % len(_WORDS)] for byte in digest[:8])).encode()

    def _count(self, **more: int) -> None:
        counts = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = replace(self._stats, **counts)
