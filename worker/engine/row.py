"""One request on its way through an engine: its tokens so far, and how it ends. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from datetime import datetime
from itertools import count
from typing import Protocol

from jobs.spec import RowError, now
from worker.engine.request import Completion, FinishReason, Request
from worker.engine.text import StopFinder, cut_at_stop


class RowTokenizer(Protocol):
    """What an engine needs of a tokenizer; ``worker.tokenizer.PromptTokenizer`` is one."""

    @property
    def special_ids(self) -> dict[str, int]: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def eos_id(self) -> int | None: ...
    def decode(self, ids: Sequence[int]) -> str: ...


#: Rows are told apart by number wherever an engine keeps something for them.
_keys = count()


class Row:
    """Takes tokens until one of them ends the row, and resolves ``future`` then."""

    def __init__(self, request: Request, tokenizer: RowTokenizer, eos_ids: frozenset[int], max_length: int) -> None:
        self.request = request
        self.key = next(_keys)
        #: Tokens, of the prompt and generated, whose keys and values are in the engine's cache.
        self.computed = 0
        #: Prompt tokens that another row had computed for this one.
        self.shared_tokens = 0
        self.future: Future[Completion] = Future()
        # A future that its holder cancels could not be resolved any more; rows are cancelled through the request.
        self.future.set_running_or_notify_cancel()
        #: Whether the engine's counters have it.
        self.counted = False
        #: Whether it has run out of memory alone before.
        self.retried = False
        self._tokenizer = tokenizer
        self._max_length = max_length
        stop = request.params.stop
        # Special tokens never appear in text, so a stop string that is one is looked for among the ids.
        special = {tokenizer.special_ids[text] for text in stop if text in tokenizer.special_ids}
        self._end_ids = eos_ids | special | set(request.params.stop_token_ids)
        self._stops = tuple(text for text in stop if text not in tokenizer.special_ids)
        self.restart()

    def restart(self) -> None:
        """Forget what was generated: the row begins again."""
        self._started_at: datetime | None = None
        self._token_ids: list[int] = []
        self._logprob = 0.0
        self._finder = StopFinder(self._stops, self._tokenizer.decode) if self._stops else None

    @property
    def done(self) -> bool:
        return self.future.done()

    @property
    def group(self) -> str:
        return self.request.group

    @property
    def prompt_ids(self) -> list[int]:
        return self.request.prompt_ids

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def output_tokens(self) -> int:
        """The most tokens that it may generate: its own limit, or what the context leaves."""
        return max(min(self.request.params.max_tokens, self._max_length - self.prompt_tokens), 1)

    @property
    def token_ids(self) -> Sequence[int]:
        """What was generated so far."""
        return self._token_ids

    @property
    def generated(self) -> int:
        return len(self._token_ids)

    @property
    def length(self) -> int:
        """Tokens of the prompt and generated."""
        return len(self.request.prompt_ids) + len(self._token_ids)

    def ids(self, start: int, count: int) -> list[int]:
        """``count`` tokens of the prompt and of what was generated, from ``start`` on."""
        own = start - len(self.request.prompt_ids)
        if own >= 0:
            return self._token_ids[own : own + count]
        return [*self.request.prompt_ids[start : start + count], *self._token_ids[: max(own + count, 0)]]

    def refuse_if_unfit(self, vocabulary: int) -> bool:
        """End the row if the model cannot take its prompt; True if so."""
        ids = self.request.prompt_ids
        if not ids:
            self.fail(RowError.EMPTY_PROMPT, "the prompt has no tokens")
        elif len(ids) > self._max_length - 1:
            self.fail(
                RowError.PROMPT_TOO_LONG,
                f"the prompt has {len(ids)} tokens; the model takes at most {self._max_length - 1}",
            )
        elif not 0 <= min(ids) <= max(ids) < vocabulary:
            # On CUDA such an id would be an assertion of the device, which ends the process.
            self.fail(
                RowError.TOKENIZER_ERROR, f"the prompt has token ids outside of the model's vocabulary of {vocabulary}"
            )
        return self.done

    def take(self, token: int, logprob: float | None) -> None:
        """Append a token; the row is done if it ends the text, or if the tokenizer cannot say what text it is."""
        try:
            self._take(token, logprob)
        except Exception as error:
            if self.done:
                raise
            self.fail(RowError.TOKENIZER_ERROR, f"its tokens cannot be decoded ({type(error).__name__}: {error})")

    def _take(self, token: int, logprob: float | None) -> None:
        if self._started_at is None:
            self._started_at = now()
        self._token_ids.append(token)
        self._logprob += logprob or 0.0
        if token in self._end_ids:
            self._finish("stop", self._text(self._token_ids[:-1]))
        elif self._finder is not None and self._finder.push(token) and (cut := self._cut()) is not None:
            self._finish("stop", cut)
        elif len(self._token_ids) >= self.output_tokens:
            self._finish("length", self._text(self._token_ids))

    def cancel(self) -> None:
        """End the row with what it has so far."""
        try:
            text = self._text(self._token_ids)
        except Exception:
            text = ""  # nobody reads the text of a cancelled row
        self._finish("length", text, cancelled=True)

    def fail(self, code: RowError, message: str) -> None:
        """End the row with an error."""
        self._finish("error", "", error_code=code, error_message=message)

    def _cut(self) -> str | None:
        return cut_at_stop(self._tokenizer.decode(self._token_ids), self._stops)

    def _text(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids)
        # Decoding the whole can show a stop string that decoding in pieces did not.
        cut = cut_at_stop(text, self._stops)
        return text if cut is None else cut

    def _finish(
        self,
        reason: FinishReason,
        text: str,
        *,
        cancelled: bool = False,
        error_code: RowError | None = None,
        error_message: str | None = None,
    ) -> None:
        finished_at = now()
        wants_logprob = self.request.params.logprobs and self._token_ids
        self.future.set_result(
            Completion(
                text=text,
                token_ids=self._token_ids,
                finish_reason=reason,
                prompt_tokens=self.prompt_tokens,
                started_at=self._started_at or finished_at,
                finished_at=finished_at,
                mean_logprob=self._logprob / len(self._token_ids) if wants_logprob else None,
                error_code=error_code,
                error_message=error_message,
                cancelled=cancelled,
                shared_tokens=self.shared_tokens,
            )
        )
