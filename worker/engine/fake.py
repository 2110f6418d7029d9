"""An engine without a model, for tests of everything around one. No torch."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from jobs.spec import RowError
from worker.engine.request import Completion, EngineLimits, EngineStats, Request
from worker.engine.row import Row
from worker.engine.scheduler import PaddedScheduler

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


class FakeEngine:
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
        self.limits = limits or EngineLimits()
        self.tokenizer = FakeTokenizer()
        self.failure: BaseException | None = None
        self._tokens_per_second = tokens_per_second
        self._fail_on, self._die_on, self._crash_on, self._hang_on = fail_on, die_on, crash_on, hang_on
        self._scheduler: PaddedScheduler[Row] = PaddedScheduler(
            self.limits.max_rows, self.limits.max_batch_tokens, max_length=self.limits.max_length
        )
        self._running: list[Row] = []
        self._wake = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._stats = EngineStats()

    def submit(self, request: Request) -> Future[Completion]:
        row = Row(request, self.tokenizer, frozenset([self.tokenizer.eos_id]), self.limits.max_length)
        with self._wake:
            if self.failure is not None:
                row.future.set_exception(self.failure)
            elif self._closing.is_set():
                row.cancel()
            elif not row.refuse_if_unfit(vocabulary=257):
                self._scheduler.add(row)
                self._wake.notify()
        return row.future

    def step(self) -> bool:
        with self._wake:
            rows = self._running = self._scheduler.next_batch()
        try:
            for row in rows:
                self._generate(row)
        except Exception as error:
            self.failure = error
            for row in self._take_all():
                row.future.set_exception(error)
            raise
        finally:
            self._running = []
        return bool(rows)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with self._wake:
            self._wake.notify()
        if self._thread is not None:
            self._thread.join()
        for row in self._take_all():
            row.cancel()

    def stats(self) -> EngineStats:
        return self._stats

    @property
    def rows_in_hand(self) -> int:
        return len(self._scheduler) + sum(not row.done for row in self._running)

    def _loop(self) -> None:
        while not self._closing.is_set():
            try:
                worked = self.step()
            except Exception:
                return
            with self._wake:
                if not worked and not self._closing.is_set() and not len(self._scheduler):
                    self._wake.wait()

    def _take_all(self) -> list[Row]:
        with self._wake:
            return [*(row for row in self._running if not row.done), *self._scheduler.remove(lambda row: True)]

    def _generate(self, row: Row) -> None:
        prompt = self.tokenizer.decode(row.request.prompt_ids)
        self._misbehave(row, prompt)
        tokens = iter([*self._answer(row.request), self.tokenizer.eos_id])
        while not row.done:
            if row.request.cancelled or self._closing.is_set():
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
            self._closing.wait()
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
