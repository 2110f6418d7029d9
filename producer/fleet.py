"""What the workers of a model have shown: asked before a check, and never waited for long."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from jobs.errors import PromptmillError
from jobs.ledger import Ledger, Shown, WorkerInfo
from jobs.settings import Settings
from jobs.store import Store

#: Seconds that a check waits for store and Redis: it says what is wrong with a file without them too.
PATIENCE_S = 3.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """The live workers of one model, and what the one showed that was the last to have work."""

    model: str
    workers: list[WorkerInfo] = field(default_factory=list)
    last: Shown | None = None
    #: Batches of other jobs that these workers could claim now.
    waiting: int = 0
    #: Why nothing is known of them, where they could not be asked.
    unknown: str | None = None

    @classmethod
    def seen(cls, ledger: Ledger, model: str) -> Fleet:
        """Raises RedisUnavailableError."""
        workers = [worker for worker in ledger.workers() if worker.model == model]
        return cls(model, workers, ledger.shown(model), ledger.claimable(model))

    @classmethod
    def look(cls, settings: Settings, model: str, patience_s: float = PATIENCE_S) -> Fleet:
        """The workers of ``model`` at the store and Redis of ``settings``; nothing is written to either.

        Where they cannot be reached, or do not answer in time, ``unknown`` says why.
        """

        def ask() -> Fleet:
            store = Store.open(settings.store, wanted=settings.store_id)
            ledger = Ledger.connect(settings.redis, store.id)
            try:
                return cls.seen(ledger, model)
            finally:
                ledger.close()

        try:
            return _within(patience_s, ask)
        except TimeoutError:
            return cls(model, unknown=f"the store or Redis does not answer within {patience_s:g} s")
        except PromptmillError as error:
            return cls(model, unknown=str(error))

    @property
    def shown(self) -> list[Shown]:
        """What each live worker has shown; of one that has not worked yet, what the last of its model did."""
        return [shown for worker in self.workers if (shown := self._shown(worker)) is not None]

    def _shown(self, worker: WorkerInfo) -> Shown | None:
        return worker.shown if worker.shown.rows_per_s > 0 else self.last

    @property
    def context(self) -> int | None:
        """Tokens of prompt and output together that every worker takes."""
        known = [worker.shown.context for worker in self.workers] or [self.last.context if self.last else 0]
        return min((context for context in known if context), default=None)

    @property
    def chars_per_token(self) -> float | None:
        """As the workers measured it on the prompts that they had."""
        return _mean([shown.chars_per_token for shown in self._all])

    @property
    def max_tokens_used(self) -> float | None:
        """The share of max_tokens that rows came to use."""
        return _mean([shown.max_tokens_used for shown in self._all])

    @property
    def _all(self) -> list[Shown]:
        return self.shown or ([self.last] if self.last else [])


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if value > 0]
    return sum(known) / len(known) if known else None


def _within(seconds: float, ask: Callable[[], Fleet]) -> Fleet:
    """The answer of ``ask``, on a thread that is left behind if it takes longer. Raises TimeoutError."""
    answers: list[Fleet] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="fleet", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not answers:
        raise TimeoutError
    return answers[0]
