"""What every engine has around its step: requests in, a thread of its own, cancellation, and its death. No torch."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait

from worker.engine.request import Completion, EngineLimits, EngineStats, Request
from worker.engine.row import Row, RowTokenizer

log = logging.getLogger(__name__)

#: Looking for cancelled rows costs about 0.2 us for each. Up to this many rows it is done at every step; with more, a
#: fraction of a step would go into it, and it is done once in so many seconds.
SCAN_ROWS, SCAN_SECONDS = 1000, 1.0


class EngineDied(Exception):
    """Raised to those who wait for an engine whose device failed; the process has to be replaced."""


class EngineLoop(ABC):
    """An engine but for how it generates: ``_add`` and ``_work`` say that.

    ``lock`` guards what ``submit`` shares with the engine's thread.
    """

    def __init__(self, tokenizer: RowTokenizer, limits: EngineLimits, eos_ids: frozenset[int], vocabulary: int) -> None:
        self.limits = limits
        #: What the engine died of, if it did.
        self.failure: BaseException | None = None
        self.lock = threading.Condition()
        #: Rows that were added and have not ended, by key.
        self._rows: dict[int, Row] = {}
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._vocabulary = vocabulary
        self._looping: Future[None] | None = None
        self._closing = False

    @abstractmethod
    def _add(self, row: Row) -> None:
        """Queue a row; called with the lock held."""

    @abstractmethod
    def _work(self) -> bool:
        """One step; False if there was nothing to do."""

    @abstractmethod
    def stats(self) -> EngineStats: ...

    @property
    def rows_in_hand(self) -> int:
        return len(self._rows)

    def submit(self, request: Request) -> Future[Completion]:
        row = Row(request, self._tokenizer, self._eos_ids, self.limits.max_length)
        with self.lock:
            if self.failure is not None:
                row.future.set_exception(_died_of(self.failure))
            elif self._closing:
                row.cancel()
            elif not row.refuse_if_unfit(self._vocabulary):
                self._rows[row.key] = row
                row.future.add_done_callback(lambda _: self._let_go(row))
                self._add(row)
                self.lock.notify()
        return row.future

    def step(self) -> bool:
        """Do one unit of work; what it raises ends the engine."""
        try:
            return self._work()
        except BaseException as error:
            self._die(error)
            raise

    def start(self, thread: Executor | None = None) -> None:
        thread = thread or ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._looping = thread.submit(self._loop)

    def close(self) -> None:
        with self.lock:
            self._closing = True
            self.lock.notify()
        if self._looping is not None:
            wait([self._looping])
        with self.lock:
            for row in [*self._rows.values()]:
                row.cancel()

    def _let_go(self, row: Row) -> None:
        with self.lock:
            self._rows.pop(row.key, None)

    def _loop(self) -> None:
        while not self._closing:
            try:
                worked = self.step()
            except BaseException:
                log.critical("the engine died", exc_info=True)
                return
            with self.lock:
                if not worked and not self._closing and not self._rows:
                    self.lock.wait()

    def _die(self, error: BaseException) -> None:
        with self.lock:
            self.failure = error
            for row in [*self._rows.values()]:
                row.future.set_exception(_died_of(error))


def _died_of(error: BaseException) -> EngineDied:
    died = EngineDied(f"the engine died: {type(error).__name__}: {error}")
    died.__cause__ = error
    return died
