"""What goes into an engine and what comes out, and the interface that every engine has. No torch."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol

from jobs.spec import RowError, SamplingParams

FinishReason = Literal["stop", "length", "error"]


@dataclass(slots=True, eq=False)
class Request:
    """One sample of one prompt.

    ``group`` names the job: engines share their capacity fairly between groups. Setting ``cancelled``
    from any thread makes the engine drop the request at its next step; its completion then has the
    tokens so far and ``cancelled`` set.
    """

    group: str
    #: The prompt as token ids, special tokens included; never empty.
    prompt_ids: list[int]
    params: SamplingParams
    #: The 63-bit seed of this sample, and the sample's index among the ``n`` of its prompt.
    seed: int
    sample: int = 0
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine made of a request. ``text`` is without the prompt and without the stop string.

    ``token_ids`` holds every generated token, the one that ended the text (EOS, a stop token, or the last of a
    stop string) included. ``mean_logprob`` is the mean natural-log probability of those tokens under the
    unmodified distribution (temperature 1, before any filter), when ``params.logprobs`` asks for it.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int
    started_at: datetime
    finished_at: datetime
    mean_logprob: float | None = None
    error_code: RowError | None = None
    error_message: str | None = None
    cancelled: bool = False
    #: Prompt tokens that were taken from a row with the same beginning instead of being computed.
    shared_tokens: int = 0
    #: Whether nothing was computed for this row: an identical request had the same answer.
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the engine started; a snapshot."""

    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: Prompt tokens taken from a row with the same beginning instead of being computed.
    shared_tokens: int = 0
    #: Rows answered by an identical one instead of being computed.
    repeated_rows: int = 0
    #: Times that a running row had to give up its place, and began again.
    preempted_rows: int = 0
    #: Steps: decode steps of a whole batch. The heartbeat takes their growth as the sign of life.
    steps: int = 0
    step_seconds: float = 0.0
    #: Of all token positions computed, those that were padding.
    padding_ratio: float = 0.0
    #: Of the room for keys and values, how much is taken.
    kv_used_ratio: float = 0.0
    running_rows: int = 0
    waiting_rows: int = 0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """How much an engine may hold at once."""

    #: Rows in one batch.
    max_rows: int = 64
    #: Tokens in one step; of the padded engine, positions (rows x (longest prompt + longest output)) in one batch.
    #: None: what suits the engine and its device.
    max_batch_tokens: int | None = None
    #: Prompt plus output of one row: the model's context length.
    max_length: int = 1_000_000
    #: Positions that the cache of keys and values may hold; None: by the memory that is free.
    kv_tokens: int | None = None


class Engine(Protocol):
    """One per process; owns the device. All methods but ``step`` may be called from any thread."""

    limits: EngineLimits
    #: What the engine died of (a device error); the process has to be replaced then. None while it lives.
    failure: BaseException | None

    def submit(self, request: Request) -> Future[Completion]:
        """Queue a request. A row that cannot be generated is a Completion with an error_code; the
        future's exception is set only when the engine itself died or was closed."""
        ...

    def step(self) -> bool:
        """Do one unit of work on the caller's thread; False if there was nothing to do."""
        ...

    def start(self, thread: Executor | None = None) -> None:
        """Run ``step`` until the engine is closed, on a thread of its own, or on that of ``thread``, which has one."""
        ...

    def close(self) -> None:
        """Stop the thread; requests not yet done get a cancelled completion."""
        ...

    def stats(self) -> EngineStats: ...

    @property
    def rows_in_hand(self) -> int:
        """Rows submitted and not yet completed."""
        ...
