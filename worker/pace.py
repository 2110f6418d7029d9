"""What a worker has seen of its work: how fast it was, how dense prompts are, how long outputs become."""

from __future__ import annotations

import threading
import time

from jobs.ledger import Shown
from worker.engine.request import EngineStats

#: Seconds of work, and tokens, after which what came before counts half: the figures are of the recent past.
_HALF_LIFE_S, _RECENT_TOKENS = 900.0, 2**24


class Pace:
    """Sums over the recent work of one process. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chars = self._prompt_tokens = 0.0
        self._used = self._allowed = 0.0
        # Of the seconds with work: rows, prompt tokens and output tokens.
        self._seconds = 0.0
        self._done = (0.0, 0.0, 0.0)
        self._last = EngineStats()
        self._looked_at = time.monotonic()
        self._had_work = False
        self._worked_at = 0.0

    def prompt(self, chars: int, tokens: int) -> None:
        """A prompt of so many characters became so many tokens."""
        with self._lock:
            if self._prompt_tokens > _RECENT_TOKENS:
                self._chars, self._prompt_tokens = self._chars / 2, self._prompt_tokens / 2
            self._chars, self._prompt_tokens = self._chars + chars, self._prompt_tokens + tokens

    def output(self, tokens: int, allowed: int) -> None:
        """A row that was allowed so many tokens generated so many."""
        with self._lock:
            if self._allowed > _RECENT_TOKENS:
                self._used, self._allowed = self._used / 2, self._allowed / 2
            self._used, self._allowed = self._used + tokens, self._allowed + allowed

    def look(self, stats: EngineStats, has_work: bool) -> bool:
        """To be called with every heartbeat; whether rows were done since the last.

        The time between two looks at work counts whole: what the engine waits for the store then is part of its
        speed. Of any other time only the engine's own steps count.
        """
        now, last = time.monotonic(), self._last
        elapsed, stepped = now - self._looked_at, stats.step_seconds - last.step_seconds
        seconds = elapsed if has_work and self._had_work else min(stepped, elapsed)
        done = (
            stats.rows - last.rows,
            stats.prompt_tokens - last.prompt_tokens,
            stats.completion_tokens - last.completion_tokens,
        )
        self._last, self._looked_at, self._had_work = stats, now, has_work
        if seconds <= 0:
            return False
        with self._lock:
            share = 0.5 ** (seconds / _HALF_LIFE_S)
            self._seconds = self._seconds * share + seconds
            rows, prompts, outputs = (before * share + more for before, more in zip(self._done, done, strict=True))
            self._done = rows, prompts, outputs
            if done[0]:
                self._worked_at = time.time()
        return done[0] > 0

    def shown(self, context: int) -> Shown:
        """What there is to show so far; ``context`` is the engine's."""
        with self._lock:
            rows, prompts, outputs = self._done
            seconds = self._seconds or 1.0
            return Shown(
                context=context,
                chars_per_token=round(self._chars / self._prompt_tokens, 4) if self._prompt_tokens else 0.0,
                max_tokens_used=round(self._used / self._allowed, 4) if self._allowed else 0.0,
                rows_per_s=round(rows / seconds, 4),
                prompt_tokens_per_s=round(prompts / seconds, 4),
                tokens_per_s=round(outputs / seconds, 4),
                at=round(self._worked_at, 3),
            )
