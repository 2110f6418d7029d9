"""How long a job will take, from what the workers of its model have shown."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from jobs.ledger import Shown
from producer.fleet import Fleet
from producer.numbers import counted
from producer.tokens import Tokens

#: Of the times that prompts alone and outputs alone would suggest: a larger ratio is worth a word, of minutes.
_MIXTURES_DIFFER, _WORTH_A_WORD_S = 3.0, 120.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """About how long a job takes if its workers have nothing else to do."""

    seconds: float
    #: Where every row generates all of its max_tokens.
    seconds_at_most: float
    rows_per_s: float
    #: Of prompts and outputs.
    tokens_per_s: float
    #: Tokens that will be generated, about; at most where nobody knows what share of max_tokens rows use.
    output_tokens: int
    max_tokens_used: float | None
    #: Live workers; 0 where the estimate is for one like the last.
    workers: int
    #: Where the speed comes from, for people.
    basis: str
    #: What makes it less sure.
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """``estimate`` of ``check --json``."""
        return {
            "rows_per_s": round(self.rows_per_s, 3),
            "tokens_per_s": round(self.tokens_per_s, 3),
            "seconds": round(self.seconds, 3),
            "seconds_at_most": round(self.seconds_at_most, 3),
            "output_tokens": self.output_tokens,
            "workers": self.workers,
            "basis": self.basis,
        }


def estimate(tokens: Tokens, result_rows: int, fleet: Fleet) -> Estimate | None:
    """None where no worker of the model has shown anything yet, or there is nothing to do.

    All tokens, of prompts and outputs, by all tokens each second of all live workers.
    """
    shown = [one for one in fleet.shown if one.rows_per_s > 0]
    if not fleet.workers and fleet.last and fleet.last.rows_per_s > 0:
        shown = [fleet.last]
    prompts, outputs = (sum(one.prompt_tokens_per_s for one in shown), sum(one.tokens_per_s for one in shown))
    speed = prompts + outputs
    if not speed or not result_rows:
        return None
    used = fleet.max_tokens_used
    expected = round(tokens.outputs * (used or 1.0))
    seconds = (tokens.work + expected) / speed
    return Estimate(
        seconds=seconds,
        seconds_at_most=(tokens.work + tokens.outputs) / speed,
        rows_per_s=result_rows / seconds if seconds else 0.0,
        tokens_per_s=speed,
        output_tokens=expected,
        max_tokens_used=used,
        workers=len(fleet.workers),
        basis=_basis(fleet, shown),
        notes=tuple(_notes(tokens.work, expected, prompts, outputs, fleet)),
    )


def _basis(fleet: Fleet, shown: list[Shown]) -> str:
    ago = duration(max(time.time() - max(one.at for one in shown), 0.0))
    if not fleet.workers:
        return f"no worker of {fleet.model!r} lives: by one like the last, {ago} ago"
    count, fresh = len(fleet.workers), sum(worker.shown.rows_per_s <= 0 for worker in fleet.workers)
    live = counted(count, "live worker")
    if len(shown) < count:
        return f"{live} of {fleet.model!r}, of which {len(shown):,} have shown their speed"
    if fresh:
        return f"{live} of {fleet.model!r}, of which {fresh:,} count as fast as the last that had work, {ago} ago"
    return f"{live} of {fleet.model!r}, with work {ago} ago"


def _notes(work: int, expected: int, prompts: float, outputs: float, fleet: Fleet) -> list[str]:
    notes = []
    if work and expected and prompts and outputs:
        low, high = sorted((work / prompts, expected / outputs))
        if high > max(_MIXTURES_DIFFER * low, _WORTH_A_WORD_S):
            notes.append(
                f"the work behind this estimate had {prompts / outputs:.2g} prompt tokens for each generated one, "
                f"these rows have {work / expected:.2g}: it may take from {duration(low)} to {duration(high)}"
            )
    if fleet.waiting:
        batches = "1 batch waits" if fleet.waiting == 1 else f"{fleet.waiting:,} batches wait"
        notes.append(f"{batches} for the same workers: a new job shares them, and takes longer")
    return notes


def duration(seconds: float) -> str:
    """About how long, in the unit that people would use."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}" if seconds < 20 * size else f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "less than 1 s"
